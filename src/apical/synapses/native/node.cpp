// The node of one synapse's call in autograd's graph, as apical/synapses/function.py has it in Python: the same operations in the
// same order, so results are equal to the bit. Here are the calls of an ordinary training step alone; all others are Python's.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace py = pybind11;
using at::Tensor;

namespace {

// As in apical/synapses/products.py.
constexpr int64_t NARROW = 32, WIDE = 400, TALL = 4096;
constexpr int64_t ROWS[] = {8, 10, 4, 5};

Tensor product(const Tensor& a, const Tensor& b) {
  const int64_t n = a.size(0), inner = a.size(1), columns = b.size(1);
  if (a.scalar_type() == at::kFloat && a.is_cpu()) {
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
  const Tensor y = bias ? at::addmm(bias->unsqueeze(1), weight, x.t()) : at::mm(weight, x.t());
  return y.t().contiguous();
}

// What passes are made beside the loop's for, which a circuit's synapses share.
struct Busy {
  std::atomic<bool> now{false};
};

// Python's words for a failure; let go of with the interpreter's lock, wherever the last node goes.
struct Words {
  py::function find;
  explicit Words(py::function find) : find(std::move(find)) {}
  ~Words() {
    if (Py_IsInitialized()) {
      py::gil_scoped_acquire lock;
      find = py::function();
    } else {
      find.release();
    }
  }
};

// What is settled about a synapse before it is called.
struct Settings {
  bool linear;         // Else a convolution.
  bool sign;           // Feedback is the sign of what was kept.
  double gain;         // Factor of the signal.
  bool follows;        // Feedback has the weights' own gradient.
  std::atomic<bool> sends_back{true};
  std::shared_ptr<Busy> busy;
  std::shared_ptr<Words> words;  // words(busy): what there is to say of a failure, or None.
  std::string second;            // Why there is no second derivative.
};

struct Geometry {
  std::vector<int64_t> stride, padding, dilation, output_padding;
  bool transposed = false;
  int64_t groups = 1;
};

// Raise Python's words for a failure, if it has any.
void fail(const Settings& settings, bool busy) {
  std::optional<std::string> found;
  {
    py::gil_scoped_acquire lock;
    found = settings.words->find(busy).cast<std::optional<std::string>>();
  }
  if (found) throw std::runtime_error(*found);
}

// A number of Python's, which low precision does not round.
Tensor number(double value) {
  const Tensor made = c10::scalar_to_tensor(value);
  made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

Three by_linear(const Tensor& x, const Tensor& delta, const Tensor& feedback, bool need_weight, bool need_bias, bool wide) {
  const bool rows = delta.dim() == 2;
  Tensor signal, made, bias;
  if (feedback.defined()) signal = rows ? product(delta, feedback) : at::matmul(delta, feedback);
  if (need_weight) {
    const Tensor out = rows ? delta : delta.reshape({-1, delta.size(-1)}), in = rows ? x : x.reshape({-1, x.size(-1)});
    made = wide ? at::mm(out.t(), in, at::kFloat) : product(out.t(), in);
  }
  if (need_bias) bias = rows ? delta.sum(0) : delta.reshape({-1, delta.size(-1)}).sum(0);
  return {signal, made, bias};
}

struct Learn : torch::autograd::Node {
  std::shared_ptr<Settings> settings;
  Geometry geometry;
  std::vector<int64_t> shape, weight;  // Of the input, and of a convolution's weights.
  bool wide = false;  // Whether the product is made in the weights' float32 at once.
  at::MemoryFormat format = at::MemoryFormat::Contiguous;  // Of the weights.
  torch::autograd::SavedVariable x, feedback;
  bool beside = false, released = false;

  std::string name() const override { return "Learn"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    x.reset_data();
    feedback.reset_data();
    released = true;
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& deltas) override {
    if (at::GradMode::is_enabled()) throw std::runtime_error(settings->second);
    const std::lock_guard<std::mutex> lock(mutex_);  // Several threads may go through one graph.
    TORCH_CHECK(!released, torch::autograd::ERR_BACKWARD_TWICE);
    if (settings->busy->now && !beside) fail(*settings, true);
    const Tensor delta = deltas[0].defined() ? deltas[0] : input_metadata(0).zeros_like();
    // Feedback follows weights that learn, whether their own gradient is asked for or not.
    const bool need_feedback =
        settings->follows && settings->sends_back && next_edge(1).is_valid() && task_should_compute_output(3);
    const bool need_weight = task_should_compute_output(1) || need_feedback, need_bias = task_should_compute_output(2);
    // What was changed since is refused, whether it is needed or not.
    const Tensor kept = x.unpack(), back = feedback.unpack();
    torch::autograd::variable_list found(4);
    try {
      Tensor B = task_should_compute_output(0) ? back : Tensor();
      bool scaled = false;
      if (B.defined()) {
        if (settings->sign) B = at::sign(B);
        if (settings->sign && settings->gain != 1 && delta.is_cuda() && B.numel() < c10::multiply_integers(shape)) {
          B.mul_(number(settings->gain));  // A pass over less memory than over the signal.
          scaled = true;
        }
        if (B.scalar_type() != delta.scalar_type()) B = B.to(delta.scalar_type());
      }
      std::tie(found[0], found[1], found[2]) = settings->linear ? by_linear(kept, delta, B, need_weight, need_bias, wide)
                                                                : by_convolution(kept, delta, B, need_weight, need_bias);
      if (settings->gain != 1 && !scaled && found[0].defined()) found[0].mul_(number(settings->gain));
      if (need_feedback) found[3] = found[1];
      if (!task_should_compute_output(1)) found[1] = Tensor();
    } catch (const std::exception&) {
      fail(*settings, false);  // Shapes that no longer fit have a better reason than the product's.
      throw;
    }
    return found;
  }

  Three by_convolution(const Tensor& kept, const Tensor& delta, const Tensor& given, bool need_weight, bool need_bias) const {
    if (!need_weight && !need_bias && !given.defined()) return {};
    // Only shapes are read where a product is masked out, so an empty tensor stands in for x or B.
    const Tensor input = kept.defined() ? kept : at::empty(shape, delta.options());
    const Tensor B = given.defined() ? given : at::empty(weight, delta.options(), format);
    auto [signal, made, bias] = at::convolution_backward(
        delta, input, B, at::IntArrayRef({delta.size(1)}), geometry.stride, geometry.padding, geometry.dilation,
        geometry.transposed, geometry.output_padding, geometry.groups, {given.defined(), need_weight, need_bias});
    return {given.defined() ? signal : Tensor(), need_weight ? made : Tensor(), need_bias ? bias : Tensor()};
  }
};

// Identity on a network's output, whose backward brings e D to every tap (apical/pathways/taps.py, where all taps are fused).
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

Geometry read(const py::tuple& given) {
  if (given.empty()) return {};
  return {
      given[0].cast<std::vector<int64_t>>(), given[1].cast<std::vector<int64_t>>(), given[2].cast<std::vector<int64_t>>(),
      given[4].cast<std::vector<int64_t>>(), given[3].cast<bool>(), given[5].cast<int64_t>()};
}

// Counted as this version of PyTorch counts nodes.
template <class N>
auto fresh() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, torch::autograd::Node>) {
    return c10::make_intrusive<N>();
  } else {
    return std::shared_ptr<N>(new N(), [](auto* node) { deleteNode(node); });
  }
}

bool plain(const Tensor& x) {
  return x.layout() == at::kStrided && (x.is_cpu() || x.is_cuda()) && !x.key_set().has(c10::DispatchKey::Python) && !x.is_nested();
}

// A call's output; none where it is no ordinary one, which Python has to make.
std::optional<Tensor> learn(
    const std::shared_ptr<Settings>& settings, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& feedback, const py::tuple& geometry) {
  if (!plain(x) || !plain(weight) || c10::impl::dispatch_mode_enabled()) return std::nullopt;
  // Of views whose dimensions don't fold, another kernel would be chosen here.
  if (settings->linear && x.dim() > 2 && !x.is_contiguous()) return std::nullopt;
  const bool casts = x.scalar_type() != at::kDouble && at::autocast::is_autocast_enabled(x.device().type());
  const auto dtype = casts ? at::autocast::get_autocast_dtype(x.device().type()) : x.scalar_type();
  const bool half = dtype == at::kBFloat16 || dtype == at::kHalf;
  const Geometry g = read(geometry);
  py::gil_scoped_release free;
  Tensor y, input = x, W = weight;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    auto b = bias;
    if (casts) {  // By hand: autocast's own cache would keep casts that were made without a graph.
      input = x.to(dtype), W = weight.to(dtype);
      if (bias) b = bias->to(dtype);
    }
    y = settings->linear
        ? affine(input, W, b)
        : at::convolution(input, W, b, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups);
  }
  const Tensor none, &own_bias = bias ? *bias : none, &back = feedback ? *feedback : none;
  if (!torch::autograd::compute_requires_grad(x, weight, own_bias, back)) return y;
  const auto node = fresh<Learn>();
  node->set_next_edges(torch::autograd::collect_next_edges(x, weight, own_bias, back));
  node->settings = settings;
  node->beside = settings->busy->now;
  // Signs are those of the weights that were cast, too, in half the memory; of float16 small ones would be 0.
  const bool cast_signs = casts && settings->sign && dtype == at::kBFloat16 && back.defined();
  if (weight.requires_grad()) node->x = torch::autograd::SavedVariable(input, false);
  if (x.requires_grad()) node->feedback = torch::autograd::SavedVariable(cast_signs ? W : back, false);
  node->shape = x.sizes().vec();
  node->wide = half && x.is_cuda() && weight.scalar_type() == at::kFloat;
  if (!settings->linear) {
    node->geometry = g;
    node->weight = weight.sizes().vec();
    node->format = weight.suggest_memory_format();
  }
  torch::autograd::set_history(y, node);
  return y;
}

// Whether nothing but a tensor's own kernels has to hear of an operation on it.
bool ordinary(const Tensor& x) {
  return plain(x) && !c10::impl::dispatch_mode_enabled() && !at::autocast::is_autocast_enabled(x.device().type());
}

// Activity x cut from its graph, where the signal e D at it may be made together with the output's error; none elsewhere.
std::optional<Tensor> tap(const Tensor& x, const Tensor& D, int64_t most) {
  const bool joins = x.dim() == 2 && D.dim() == 2 && x.size(1) == D.size(1) && x.numel() <= most && x.requires_grad() &&
      !D.requires_grad() && ordinary(x) && plain(D);
  return joins ? std::optional(x.detach()) : std::nullopt;
}

// The output with edges to all taps: tuples that end in an activity and its feedback. None where a shape is not as it should be.
std::optional<Tensor> join(const Tensor& output, const py::list& taps) {
  if (!ordinary(output) || output.dim() == 0 || output.size(0) == 0) return std::nullopt;
  const auto node = fresh<Broadcast>();
  node->add_next_edge(torch::autograd::impl::gradient_edge(output));
  for (const py::handle one : taps) {
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

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Busy, std::shared_ptr<Busy>>(module, "Busy", py::module_local())
      .def(py::init<>())
      .def_property("now", [](const Busy& it) { return it.now.load(); }, [](Busy& it, bool now) { it.now = now; });
  py::class_<Settings, std::shared_ptr<Settings>>(module, "Settings", py::module_local())
      .def(
          py::init([](bool linear, bool sign, double gain, bool follows, std::shared_ptr<Busy> busy, py::function words,
                      std::string second) {
            auto made = std::make_shared<Settings>();
            made->linear = linear, made->sign = sign, made->gain = gain, made->follows = follows;
            made->busy = std::move(busy), made->words = std::make_shared<Words>(std::move(words));
            made->second = std::move(second);
            return made;
          }),
          py::kw_only(), py::arg("linear"), py::arg("sign"), py::arg("gain"), py::arg("follows"), py::arg("busy"),
          py::arg("words"), py::arg("second"))
      .def_property(
          "sends_back", [](const Settings& it) { return it.sends_back.load(); },
          [](Settings& it, bool sends_back) { it.sends_back = sends_back; })
      .def("call", &learn)
      // Copies of a synapse, and those that are read from a file, find their own.
      .def("__reduce__", [](const Settings&) { return py::make_tuple(py::type::of(py::none()), py::tuple()); });
  module.def("tap", &tap);
  module.def("join", &join);
}
