//! Parameters that stand in a file in parts.

use std::collections::BTreeMap;
use std::path::Path;

use burn::store::bridge;
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::{DType, Shape, TensorData};

use crate::CheckpointError;

/// Groups of consecutive rows of parameters.
#[derive(Default)]
pub(super) struct Parts(BTreeMap<String, Vec<Part>>);

struct Part {
    name: String,
    offset: usize,
    total: usize,
    tensor: PackTensor,
}

impl Parts {
    pub(super) fn add(&mut self, parameter: &str, name: &str, offset: usize, total: usize, tensor: PackTensor) {
        let part = Part { name: name.into(), offset, total, tensor };
        self.0.entry(parameter.into()).or_default().push(part);
    }

    /// What the parameters are called in the file: the names of their parts.
    pub(super) fn names(&self) -> impl Iterator<Item = (String, String)> {
        self.0.iter().map(|(parameter, parts)| {
            let mut parts: Vec<_> = parts.iter().map(|part| (part.offset, part.name.as_str())).collect();
            parts.sort_unstable();
            let names: Vec<_> = parts.into_iter().map(|(_, name)| name).collect();
            (parameter.clone(), names.join(" + "))
        })
    }

    /// Joins the parts of each parameter, which must be complete.
    pub(super) fn join(self, path: &Path) -> Result<Vec<(String, PackTensor)>, CheckpointError> {
        self.0.into_iter().map(|(parameter, parts)| Ok((parameter.clone(), join(&parameter, parts, path)?))).collect()
    }
}

fn join(parameter: &str, mut parts: Vec<Part>, path: &Path) -> Result<PackTensor, CheckpointError> {
    parts.sort_by_key(|part| part.offset);
    let mut shape = parts[0].tensor.shape.to_vec();
    let total = parts[0].total;
    let mut rows = 0;
    for part in &parts {
        let got = part.tensor.shape.to_vec();
        if part.offset != rows {
            let names = vec![format!("{parameter} (its rows {rows} to {})", part.offset)];
            return Err(CheckpointError::Missing { path: path.into(), names });
        }
        if got[1..] != shape[1..] || rows + got[0] > total {
            let mut expected = shape.clone();
            expected[0] = total - rows;
            return Err(CheckpointError::Shape { path: path.into(), name: part.name.clone(), expected, got });
        }
        rows += got[0];
    }
    if rows != total {
        let names: Vec<_> = parts.into_iter().map(|part| part.name).collect();
        let names = vec![format!("{parameter} (its rows {rows} to {total}, behind {})", names.join(", "))];
        return Err(CheckpointError::Missing { path: path.into(), names });
    }
    shape[0] = total;
    let shape = Shape::from(shape);
    let whole = shape.clone();
    // Read when the parameter is.
    let values = move || {
        let mut values = Vec::with_capacity(whole.num_elements());
        for part in &parts {
            values.extend(bridge::to_data(&part.tensor)?.iter::<f32>());
        }
        Ok(TensorData::new(values, whole.clone()))
    };
    Ok(bridge::deferred(parameter.to_string(), DType::F32, shape, None, values))
}
