// Matrix products on a CPU, as apical/synapses/products.py has them.

#pragma once

#include <ATen/ATen.h>

#include <fstream>
#include <iterator>
#include <optional>
#include <string>

namespace {

using at::Tensor;

constexpr int64_t NARROW = 32, WIDE = 400, TALL = 4096, FEW = 32;
constexpr int64_t ROWS[] = {8, 10, 4, 5};

// Whether the CPU is one of AMD's.
bool by_amd() {
  static const bool found = [] {
    std::ifstream told("/proc/cpuinfo");
    const std::string text((std::istreambuf_iterator<char>(told)), std::istreambuf_iterator<char>());
    return text.find("AuthenticAMD") != std::string::npos;
  }();
  return found;
}

Tensor product(const Tensor& a, const Tensor& b) {
  const int64_t n = a.size(0), inner = a.size(1), columns = b.size(1);
  if (by_amd() && a.scalar_type() == at::kFloat && a.is_cpu()) {
    if (inner <= NARROW) {
      if (columns >= WIDE && n >= 32) {
        for (const int64_t rows : ROWS) {
          if (n % rows == 0) {
            const int64_t blocks = n / rows;
            return at::bmm(a.unflatten(0, {blocks, rows}), b.expand({blocks, b.size(0), b.size(1)})).flatten(0, 1);
          }
        }
      }
    } else if (inner * columns >= TALL * n && 2 * columns <= 3 * inner) {
      return at::mm(b.t(), a.t()).t().contiguous();
    } else if (inner >= 64 && n * columns >= 4096) {
      return a.new_zeros({n, columns}).addmm_(a, b);
    }
  }
  return at::mm(a, b);
}

Tensor affine(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  if (x.dim() != 2 || x.scalar_type() != at::kFloat || !x.is_cpu() || weight.numel() < TALL * x.size(0)) {
    return at::linear(x, weight, bias);
  }
  if (!by_amd() && (x.size(0) < 8 || x.size(0) > FEW)) {
    return at::linear(x, weight, bias);
  }
  const Tensor y = bias ? at::addmm(bias->unsqueeze(1), weight, x.t()) : at::mm(weight, x.t());
  return y.t().contiguous();
}

}  // namespace
