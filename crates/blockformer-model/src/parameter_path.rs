//! The names of parameters in weight files.

/// Where a visit of a module's parameters is: call [`enter`](Self::enter) and [`exit`](Self::exit) from a
/// [`ModuleVisitor`](burn::module::ModuleVisitor) or [`ModuleMapper`](burn::module::ModuleMapper).
#[derive(Debug, Clone, Default)]
pub struct ParameterPath {
    names: Vec<String>,
    containers: Vec<String>,
}

impl ParameterPath {
    /// For `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.containers.push(container.into());
        if !container.starts_with("Enum:") {
            self.names.push(name.into());
        }
    }

    /// For `exit_module`.
    pub fn exit(&mut self, container: &str) {
        self.containers.pop();
        if !container.starts_with("Enum:") {
            self.names.pop();
        }
    }

    /// The containers the parameter is in, outermost first.
    pub(crate) fn containers(&self) -> &[String] {
        &self.containers
    }

    /// Whether the parameter belongs to a linear map, whose weight is `[in, out]` in memory and `[out, in]` in a file.
    pub fn in_linear(&self) -> bool {
        self.containers.last().is_some_and(|container| container == "Struct:Linear")
    }

    /// The names of the modules' fields, without enum variants.
    pub(crate) fn own_name(&self) -> String {
        self.names.join(".")
    }

    /// The parameter's name as in weight files: without enum variants, and with norms' `weight` and `bias`.
    pub fn name(&self) -> String {
        let path = self.own_name();
        match path.rsplit_once('.') {
            Some((module, "gamma")) => format!("{module}.weight"),
            Some((module, "beta")) => format!("{module}.bias"),
            _ => path,
        }
    }
}
