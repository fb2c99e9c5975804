// What nodes of autograd's graph have in common here.

#pragma once

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace py = pybind11;

namespace {

using at::Tensor;

// Counted as this version of PyTorch counts nodes.
template <class N>
auto fresh() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, torch::autograd::Node>) {
    return c10::make_intrusive<N>();
  } else {
    return std::shared_ptr<N>(new N(), [](auto* node) { deleteNode(node); });
  }
}

// An object of Python's, which is let go of with the interpreter's lock, wherever the last node goes.
struct Held {
  py::object it;
  explicit Held(py::object it) : it(std::move(it)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire lock;
      it = py::object();
    } else {
      it.release();
    }
  }
};

// Whether C++ sees all that there is to a tensor.
bool plain(const Tensor& x) {
  return x.layout() == at::kStrided && (x.is_cpu() || x.is_cuda()) && !x.key_set().has(c10::DispatchKey::Python) && !x.is_nested();
}

// Whether a mode or a transform wants to hear of operations.
bool watched() {
  return c10::impl::dispatch_mode_enabled() || at::impl::PythonTorchFunctionTLS::stack_len() > 0 ||
      c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

// Whether nothing but a tensor's own kernels has to hear of an operation on it.
bool ordinary(const Tensor& x) {
  return plain(x) && !watched() && !at::autocast::is_autocast_enabled(x.device().type());
}

}  // namespace
