//! Counting parameters.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor};

/// The number of parameters of a model, without drawing their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParameterCount {
    /// All of them.
    pub total: usize,
    /// Those of the transformer layers, which the paper calls *non-embedding*: token embeddings, output projection,
    /// and the embedder's and token decoder's projections are left out.
    pub non_embedding: usize,
}

impl ParameterCount {
    /// Counts the parameters of `module`; those below a field named `transformer`, or below one named `layers`, are its
    /// layers.
    pub fn of<M: Module>(module: &M) -> Self {
        let mut visitor = Visitor::default();
        module.visit(&mut visitor);
        visitor.count
    }
}

#[derive(Default)]
struct Visitor {
    count: ParameterCount,
    inside: usize,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        if name == "transformer" || name == "layers" || self.inside > 0 {
            self.inside += 1;
        }
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.inside = self.inside.saturating_sub(1);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(param.lazy_shape().num_elements());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add(param.lazy_shape().num_elements());
    }
}

impl Visitor {
    fn add(&mut self, n: usize) {
        self.count.total += n;
        if self.inside > 0 {
            self.count.non_embedding += n;
        }
    }
}
