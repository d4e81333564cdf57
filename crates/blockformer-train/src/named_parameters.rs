//! The parameters of a model by name: as in weight files, without enum variants and with norms' `weight` and `bias`.

use std::collections::BTreeMap;

use blockformer_model::ParameterPath;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

/// A parameter's name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) id: ParamId,
    pub(crate) name: String,
    pub(crate) in_memory: Vec<usize>,
    /// Whether it is the weight of a linear map, which is `[in, out]` in memory and `[out, in]` in a file.
    pub(crate) linear: bool,
}

impl Parameter {
    pub(crate) fn shape_in_file(&self) -> Vec<usize> {
        let mut shape = self.in_memory.clone();
        if self.linear {
            shape.reverse();
        }
        shape
    }
}

/// Every parameter, in the order of the model; lazy ones stay undrawn.
pub(crate) fn shapes<M: Module>(model: &M) -> Vec<Parameter> {
    let mut visitor = Shapes { path: ParameterPath::default(), found: Vec::new() };
    model.visit(&mut visitor);
    visitor.found
}

/// The value of every parameter.
pub(crate) fn values<M: Module>(model: &M) -> BTreeMap<String, Value> {
    let mut visitor = Values { path: ParameterPath::default(), found: BTreeMap::new() };
    model.visit(&mut visitor);
    visitor.found
}

/// Gives parameters the values that `value` has for them; the others stay as they are, lazy ones undrawn.
pub(crate) fn replace<M: Module>(model: M, value: impl FnMut(&str) -> Option<Value>) -> M {
    model.map(&mut Replace { path: ParameterPath::default(), value })
}

/// The value of a parameter, without its graph.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// Of a bias or a norm.
    Vector(Tensor<1>),
    /// Of a linear map or a table.
    Matrix(Tensor<2>),
}

impl Value {
    fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        let tensor = if tensor.is_autodiff() { tensor.inner() } else { tensor };
        match *tensor.shape().as_slice() {
            [n] => Self::Vector(tensor.reshape([n])),
            [rows, columns] => Self::Matrix(tensor.reshape([rows, columns])),
            ref other => panic!("a parameter of shape {other:?}: models have vectors and matrices"),
        }
    }

    /// A matrix with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        match self {
            Self::Vector(tensor) => Self::Vector(tensor),
            Self::Matrix(tensor) => Self::Matrix(tensor.transpose()),
        }
    }

    fn into_tensor<const D: usize>(self, shape: [usize; D]) -> Tensor<D> {
        match self {
            Self::Vector(tensor) => tensor.reshape(shape),
            Self::Matrix(tensor) => tensor.reshape(shape),
        }
    }
}

struct Shapes {
    path: ParameterPath,
    found: Vec<Parameter>,
}

impl ModuleVisitor for Shapes {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (name, in_memory) = (self.path.name(), param.lazy_shape().to_vec());
        self.found.push(Parameter { id: param.id, name, in_memory, linear: D == 2 && self.path.in_linear() });
    }
}

struct Values {
    path: ParameterPath,
    found: BTreeMap<String, Value>,
}

impl ModuleVisitor for Values {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.insert(self.path.name(), Value::of(param.val()));
    }
}

struct Replace<F> {
    path: ParameterPath,
    value: F,
}

impl<F: FnMut(&str) -> Option<Value>> ModuleMapper for Replace<F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = (self.value)(&self.path.name()) else { return param };
        let (id, shape, device) = (param.id, param.lazy_shape().dims::<D>(), param.lazy_device());
        let value = value.into_tensor(shape);
        // Loading does not lift a plain tensor onto an autodiff device.
        let value = if device.is_autodiff() { Tensor::from_data(value.into_data(), &device) } else { value };
        // Its own id, not that of the tensor's source: a layer copied twice must be trained twice.
        param.transform_for_load(value, id)
    }
}
