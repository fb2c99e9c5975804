// The node of one synapse's call in autograd's graph, as apical/synapses/function.py has it in Python: the same operations in the
// same order, so results are equal to the bit. Here are the calls of an ordinary training step alone; all others are Python's.

#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common.h"
#include "moving.h"
#include "products.h"
#include "taps.h"

namespace {

// What passes are made beside the loop's for, which a circuit's synapses share.
struct Busy {
  std::atomic<bool> now{false};
};

// What is settled about a synapse before it is called.
struct Settings {
  bool linear;         // Else a convolution.
  bool sign;           // Feedback is the sign of what was kept.
  double gain;         // Factor of the signal.
  bool follows;        // Feedback has the weights' own gradient.
  bool fuses;          // A product of rows can be added to the weights in place.
  std::atomic<bool> sends_back{true};
  std::shared_ptr<Busy> busy;
  std::shared_ptr<Held> words;  // words(busy): what there is to say of a failure, or None.
  std::string second;           // Why there is no second derivative.
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
    found = settings.words->it(busy).cast<std::optional<std::string>>();
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
  std::unique_ptr<Claim> claim;  // Who takes the call's update; none where it is an ordinary gradient.
  std::unique_ptr<Held> heard, told;  // Who hears of the error and the signal, for a phase, and the geometry as Python has it.
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
    Plan update;
    if (claim) update = plan(*claim, asked(*this));
    TORCH_CHECK(!released, torch::autograd::ERR_BACKWARD_TWICE);
    if (settings->busy->now && !beside) fail(*settings, true);
    const Tensor delta = deltas[0].defined() ? deltas[0] : input_metadata(0).zeros_like();
    const bool asks_weight = task_should_compute_output(1), need_bias = task_should_compute_output(2);
    // Feedback follows weights that learn, whether their own gradient is asked for or not.
    const bool need_feedback = settings->sends_back && next_edge(1).is_valid() && task_should_compute_output(3);
    const bool follows = settings->follows && need_feedback;
    if (update.moves()) {
      const auto unlike = [&](const Tensor& one) { return one.defined() && one.scalar_type() != delta.scalar_type(); };
      if (!follows) update.feedback = Tensor();
      if (unlike(update.weight) || unlike(update.bias) || unlike(update.feedback)) update.weight = Tensor();
    }
    bool need_weight = asks_weight || follows;
    if (update.takes && settings->fuses && delta.dim() == 2) {
      need_weight = update.moves() && update.feedback.defined();  // Else it is added to the weights in place.
    }
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
      if (update.takes) {  // After the signal, which belongs to the weights as they were.
        if (update.moves()) {
          move(*claim, update, kept, delta, found[1], found[2]);
          found[2] = Tensor();
        } else {
          found[2] = take(*claim, kept, delta, found[1], found[2], need_feedback);
        }
        found[1] = Tensor();
      } else {
        if (follows) found[3] = found[1];
        if (!asks_weight) found[1] = Tensor();
      }
      if (heard) hear(delta, found[0]);
    } catch (const std::exception&) {
      fail(*settings, false);  // Shapes that no longer fit have a better reason than the product's.
      throw;
    }
    return found;
  }

  // With an alias, so that counts of who holds the memory tell of anybody else.
  void hear(const Tensor& delta, const Tensor& signal) const {
    in_python([&] {
      heard->it.attr("hear")(delta, signal.defined() ? py::cast(signal.detach()) : py::none(), told->it);
    });
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

Geometry read(const py::tuple& given) {
  if (given.empty()) return {};
  return {
      given[0].cast<std::vector<int64_t>>(), given[1].cast<std::vector<int64_t>>(), given[2].cast<std::vector<int64_t>>(),
      given[4].cast<std::vector<int64_t>>(), given[3].cast<bool>(), given[5].cast<int64_t>()};
}

// Whether a signal at x goes to a synapse of the same learner by a single operation; there may be one on another way, too.
bool within(const Settings& settings, const Tensor& x) {
  const auto& last = x.grad_fn();
  if (!last || last->num_outputs() != 1) return false;
  const auto* before = dynamic_cast<const Learn*>(last->next_edge(0).function.get());
  return before && before->settings->busy == settings.busy;
}

// What Python calls the node's synapse, while there is one.
PyObject* synapse_of(PyObject* self, void*) {
  const auto* node = static_cast<Learn*>(reinterpret_cast<torch::autograd::THPCppFunction*>(self)->cdata.get());
  try {
    return node->settings->words->it.attr("synapse")().release().ptr();
  } catch (py::error_already_set& failure) {
    failure.restore();
    return nullptr;
  }
}

void name_nodes() {
  using namespace torch::autograd;  // For PyTorch's macros.
  static PyGetSetDef properties[] = {THP_FUNCTION_DEFAULT_PROPERTIES, {"synapse", synapse_of, nullptr, nullptr, nullptr}, {nullptr}};
  static PyMethodDef methods[] = {
      {"_register_hook_dict", THPCppFunction_register_hook_dict, METH_O, nullptr},
      {"register_hook", THPCppFunction_register_hook, METH_O, nullptr},
      {"register_prehook", THPCppFunction_register_prehook, METH_O, nullptr},
      {"name", THPCppFunction_name, METH_NOARGS, nullptr},
      {"_sequence_nr", THPCppFunction_sequence_nr, METH_NOARGS, nullptr},
      {nullptr}};
  static PyTypeObject type;
  _initFunctionPyTypeObject(type, "Learn", properties, methods);
  registerCppFunction(typeid(Learn), &type);
}

// A call's output; none where it is no ordinary one, which Python has to make.
std::optional<Tensor> learn(
    const std::shared_ptr<Settings>& settings, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& feedback, const py::tuple& geometry, const py::object& updater, const py::object& record,
    const py::object& synapse) {
  if (!plain(x) || !plain(weight) || watched()) return std::nullopt;
  // Of views whose dimensions don't fold, another kernel would be chosen here.
  if (settings->linear && x.dim() > 2 && !x.is_contiguous()) return std::nullopt;
  const bool casts = x.scalar_type() != at::kDouble && at::autocast::is_autocast_enabled(x.device().type());
  const auto dtype = casts ? at::autocast::get_autocast_dtype(x.device().type()) : x.scalar_type();
  const bool half = dtype == at::kBFloat16 || dtype == at::kHalf;
  const Geometry g = read(geometry);
  std::unique_ptr<Claim> claim;
  if (!updater.is_none()) {
    const bool leaves = x.requires_grad() && feedback && !within(*settings, x);
    py::object owned = ask(updater, names().expect, synapse, leaves ? x : Tensor(), weight.requires_grad());
    if (!owned.is_none()) claim = std::make_unique<Claim>(std::move(owned), synapse);
  }
  std::unique_ptr<Held> heard, told;
  if (!record.is_none()) {
    py::object found = record.attr("call")(synapse);
    if (!found.is_none()) heard = std::make_unique<Held>(std::move(found)), told = std::make_unique<Held>(geometry);
  }
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
  node->claim = std::move(claim);
  node->heard = std::move(heard), node->told = std::move(told);
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

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  py::class_<Busy, std::shared_ptr<Busy>>(module, "Busy", py::module_local())
      .def(py::init<>())
      .def_property("now", [](const Busy& it) { return it.now.load(); }, [](Busy& it, bool now) { it.now = now; });
  py::class_<Settings, std::shared_ptr<Settings>>(module, "Settings", py::module_local())
      .def(
          py::init([](bool linear, bool sign, double gain, bool follows, bool fuses, std::shared_ptr<Busy> busy, py::object words,
                      std::string second) {
            auto made = std::make_shared<Settings>();
            made->linear = linear, made->sign = sign, made->gain = gain, made->follows = follows;
            made->fuses = fuses;
            made->busy = std::move(busy), made->words = std::make_shared<Held>(std::move(words));
            made->second = std::move(second);
            return made;
          }),
          py::kw_only(), py::arg("linear"), py::arg("sign"), py::arg("gain"), py::arg("follows"), py::arg("fuses"),
          py::arg("busy"), py::arg("words"), py::arg("second"))
      .def_property(
          "sends_back", [](const Settings& it) { return it.sends_back.load(); },
          [](Settings& it, bool sends_back) { it.sends_back = sends_back; })
      .def("call", &learn)
      .def("within", &within)
      // Copies of a synapse, and those that are read from a file, find their own.
      .def("__reduce__", [](const Settings&) { return py::make_tuple(py::type::of(py::none()), py::tuple()); });
  name_nodes();
  module.def("tap", &tap);
  module.def("join", &join);
}
