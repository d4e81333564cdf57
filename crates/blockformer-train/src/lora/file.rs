//! Adapters as a safetensors file, with their settings in its metadata.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::store::{ModuleSnapshot, SafetensorsStore};
use burn::tensor::{Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

use super::{LoraConfig, LoraError, MARK};
use crate::named_parameters::{self, Parameter, Value};

/// The settings' name in the metadata.
const SETTINGS: &str = "lora";

/// Writes the adapters of `model`, and nothing else of it, to `path`, by way of a temporary file.
///
/// # Errors
/// [`LoraError::None`] if there are none, [`LoraError::Write`] naming the file.
pub fn save<M: Module>(model: &M, config: &LoraConfig, path: &Path) -> Result<(), LoraError> {
    let write = |reason: String| LoraError::Write { path: path.into(), reason };
    if adapters(model).next().is_none() {
        return Err(LoraError::None);
    }
    let settings = serde_json::to_string(config).map_err(|error| write(error.to_string()))?;
    let store = SafetensorsStore::from_file(path).overwrite(true).skip_enum_variants(true);
    let mut store = store.with_regex(r"\.lora\.[ab]$").metadata(SETTINGS, settings).metadata("format", "pt");
    model.save_into(&mut store).map_err(|error| write(error.to_string()))
}

/// Attaches to `model` the adapters that [`save`] wrote, and gives their settings.
///
/// # Errors
/// A [`LoraError`] if the file cannot be read, holds no adapters, or those of another model.
pub fn load<M: Module>(model: M, path: &Path) -> Result<(M, LoraConfig), LoraError> {
    let bytes = std::fs::read(path).map_err(|source| LoraError::Io { path: path.into(), source })?;
    let malformed = |reason: String| LoraError::Malformed { path: path.into(), reason };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| malformed(error.to_string()))?;
    let settings = metadata.metadata().as_ref().and_then(|metadata| metadata.get(SETTINGS));
    let settings = settings.ok_or_else(|| malformed(format!("its metadata has no {SETTINGS:?}")))?;
    let config: LoraConfig = serde_json::from_str(settings).map_err(|error| malformed(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;

    let model = config.attach(model)?;
    let mut values = BTreeMap::new();
    for adapter in adapters(&model) {
        let other = |problem| LoraError::OtherModel { path: path.into(), name: adapter.name.clone(), problem };
        let view = file.tensor(&adapter.name).map_err(|_| other("is missing".into()))?;
        if view.shape() != adapter.in_memory || view.dtype() != Dtype::F32 {
            let (dtype, got, expected) = (view.dtype(), view.shape(), &adapter.in_memory);
            return Err(other(format!("is {dtype:?} of shape {got:?}, the model needs F32 of {expected:?}")));
        }
        let numbers: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        values.insert(adapter.name, TensorData::new(numbers, view.shape().to_vec()));
    }
    if let Some(name) = file.names().into_iter().find(|name| !values.contains_key(*name)) {
        let problem = "is not one of its adapters".into();
        return Err(LoraError::OtherModel { path: path.into(), name: name.to_string(), problem });
    }
    let device = model.devices().into_iter().next().expect("a model with adapters has a device");
    let value = |name: &str| Some(Value::Matrix(Tensor::from_data(values.get(name)?.clone(), &device)));
    Ok((named_parameters::replace(model, value), config))
}

/// The parameters of the adapters of a model.
fn adapters<M: Module>(model: &M) -> impl Iterator<Item = Parameter> {
    named_parameters::shapes(model).into_iter().filter(|parameter| parameter.name.contains(MARK))
}
