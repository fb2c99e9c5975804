// The taps of direct feedback in an ordinary step, as apical/pathways/taps.py has them where all are fused.

#pragma once

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "products.h"

namespace {

// Identity on a network's output, whose backward brings e D to every tap.
struct Broadcast : torch::autograd::Node {
  std::vector<torch::autograd::SavedVariable> feedback;
  bool released = false;

  std::string name() const override { return "Broadcast"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& D : feedback) D.reset_data();
    released = true;
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& errors) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!released, torch::autograd::ERR_BACKWARD_TWICE);
    const Tensor e = errors[0].defined() ? errors[0] : input_metadata(0).zeros_like();
    const Tensor rows = e.dim() > 1 ? e.flatten(1) : e.unsqueeze(1);
    torch::autograd::variable_list signals{e};
    for (const auto& kept : feedback) {
      const Tensor D = kept.unpack();
      signals.push_back(product(rows, D.scalar_type() == e.scalar_type() ? D : D.to(e.scalar_type())));
    }
    return signals;
  }
};

// Activity x cut from its graph, where the signal e D at it may be made together with the output's error; none elsewhere.
std::optional<Tensor> tap(const Tensor& x, const Tensor& D, int64_t most) {
  const bool joins = x.dim() == 2 && D.dim() == 2 && x.size(1) == D.size(1) && x.numel() <= most && x.requires_grad() &&
      !D.requires_grad() && ordinary(x) && plain(D);
  return joins ? std::optional(x.detach()) : std::nullopt;
}

// The output with edges to all taps, tuples that end in an activity and its feedback. None where there is another tap, or a shape
// is not as it should be.
std::optional<Tensor> join(const Tensor& output, const py::list& taps) {
  if (!ordinary(output) || output.dim() == 0 || output.size(0) == 0) return std::nullopt;
  const auto node = fresh<Broadcast>();
  node->add_next_edge(torch::autograd::impl::gradient_edge(output));
  for (const py::handle one : taps) {
    if (!PyTuple_Check(one.ptr())) return std::nullopt;
    const auto tuple = py::reinterpret_borrow<py::tuple>(one);
    const Tensor &x = THPVariable_Unpack(tuple[1].ptr()), &D = THPVariable_Unpack(tuple[2].ptr());
    if (x.size(0) != output.size(0) || D.size(0) * output.size(0) != output.numel()) return std::nullopt;
    node->add_next_edge(torch::autograd::impl::gradient_edge(x));
    node->feedback.emplace_back(D, false);
  }
  Tensor joined;
  {
    py::gil_scoped_release free;
    at::AutoDispatchBelowADInplaceOrView below;
    joined = output.clone();  // Not a view: the model's output may be changed in place.
  }
  torch::autograd::set_history(joined, node);
  return joined;
}

}  // namespace
