// How a call's update is taken in the backward pass, as apical/optim has it: by Python, but for plain SGD's steps.

#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_variable.h>

#include <utility>

#include "common.h"

namespace {

// A forward pass whose updates are taken (apical/optim/ownership.py), and the synapse that was called in it.
struct Claim {
  Held owned, synapse;
  Claim(py::object owned, py::object synapse) : owned(std::move(owned)), synapse(std::move(synapse)) {}
};

// What becomes of a call's update.
struct Plan {
  bool takes = false;   // Python's `take` waits for it.
  bool unread = false;  // It is the first of a backward pass: a step by what is not finite is refused.
  Tensor weight, bias, feedback;  // What moves here, by these rates.
  double rate = 0, bias_rate = 0, feedback_rate = 0;

  bool moves() const { return weight.defined(); }
};

// Call Python; its failures go on as autograd hands them on.
template <class F>
auto in_python(F&& call) {
  py::gil_scoped_acquire lock;
  try {
    return call();
  } catch (py::error_already_set& failure) {
    failure.restore();
    python_error kept;
    kept.persist();
    throw kept;
  }
}

inline py::object boxed(const py::object& one) { return one; }
inline py::object boxed(const Tensor& one) { return py::cast(one); }
inline py::object boxed(bool one) { return py::bool_(one); }

// A method's answer. Its name is one string for all calls, which pybind11 would make anew.
template <class... A>
py::object ask(const py::handle& one, const py::handle& name, const A&... arguments) {
  const py::object held[] = {boxed(arguments)...};
  PyObject* given[1 + sizeof...(A)] = {one.ptr()};
  for (size_t i = 0; i < sizeof...(A); ++i) given[1 + i] = held[i].ptr();
  PyObject* answer = PyObject_VectorcallMethod(name.ptr(), given, 1 + sizeof...(A), nullptr);
  if (!answer) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(answer);
}

struct Names {
  py::handle claim = PyUnicode_InternFromString("claim"), updates = PyUnicode_InternFromString("updates"),
             take = PyUnicode_InternFromString("take"), read = PyUnicode_InternFromString("read"),
             moved = PyUnicode_InternFromString("moved"), expect = PyUnicode_InternFromString("expect");
};

const Names& names() {
  static const Names all;
  return all;
}

py::object updates(const Claim& claim) { return claim.owned.it.attr(names().updates); }

// Whether the backward pass that is going on asks for gradients of all that a node learns.
bool asked(const torch::autograd::Node& node) {
  const auto* executed = torch::autograd::get_current_graph_task_exec_info();
  for (uint32_t i = 1; i < node.num_outputs(); ++i) {
    if (!node.next_edge(i).is_valid()) continue;
    if (!executed) return false;
    if (executed->empty()) continue;
    const auto* next = node.next_edge(i).function.get();
    const auto it = executed->find(const_cast<torch::autograd::Node*>(next));
    if (it == executed->end() || !it->second.should_execute()) return false;
    if (next->topological_nr() == 0 && it->second.captures_) return false;  // What torch.autograd.grad was asked for.
  }
  return true;
}

Plan plan(const Claim& claim, bool asked) {
  return in_python([&] {
    Plan found;
    const py::object answer = ask(claim.owned.it, names().claim, claim.synapse.it, asked);
    if (!PyTuple_Check(answer.ptr())) {
      found.takes = answer.cast<bool>();
      return found;
    }
    const auto facts = py::reinterpret_borrow<py::tuple>(answer);
    const auto tensor = [&](int i) { return facts[i].is_none() ? Tensor() : Tensor(THPVariable_Unpack(facts[i].ptr())); };
    found.takes = true;
    found.weight = tensor(0), found.bias = tensor(1), found.feedback = tensor(2);
    found.rate = facts[3].cast<double>(), found.bias_rate = facts[4].cast<double>();
    found.feedback_rate = facts[5].cast<double>(), found.unread = facts[6].cast<bool>();
    return found;
  });
}

// Hand an update over; gives what is left of the bias's gradient.
Tensor take(const Claim& claim, const Tensor& x, const Tensor& delta, const Tensor& made, const Tensor& bias, bool feedback) {
  return in_python([&] {
    const py::object left = ask(updates(claim), names().take, claim.synapse.it, x, delta, made, bias, feedback);
    return left.is_none() ? Tensor() : left.cast<Tensor>();
  });
}

// Move weights by -rate delta^T x (which is given where it is made), the bias by its sum, and feedback as the weights.
void move(const Claim& claim, Plan& plan, const Tensor& x, const Tensor& delta, const Tensor& made, const Tensor& bias) {
  if (plan.unread) {
    in_python([&] { ask(updates(claim), names().read, claim.synapse.it, delta, bias); });
  }
  if (plan.feedback.defined()) plan.feedback.add_(made, -plan.feedback_rate);
  if (made.defined()) {
    plan.weight.add_(made, -plan.rate);
  } else {
    plan.weight.addmm_(delta.t(), x, 1.0, -plan.rate);
  }
  if (bias.defined()) plan.bias.add_(bias, -plan.bias_rate);
  in_python([&] { ask(updates(claim), names().moved, claim.synapse.it, bias); });
}

}  // namespace
