//! Reading and writing weights.
//!
//! A model directory holds `config.json`, `model.safetensors` and, for text, `tokenizer.json`. Weights are stored
//! under the names of the modules' fields, without enum variants, in PyTorch's layout (linear weights `[out, in]`,
//! norms `weight` and `bias`), so a model loads alike through [`AnyEmbedder`](blockformer_embedder::AnyEmbedder) and
//! through a concrete type.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use blockformer_files::permissions_for;
use burn::module::{Module, ModuleMapper, Param};
use burn::store::burn_pack::Tensor as PackTensor;
use burn::store::{
    ApplyError, ApplyResult, BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleContext, ModuleSnapshot,
    ModuleStore, PyTorchToBurnAdapter, SafetensorsStore, bridge,
};
use burn::tensor::{DType, Device, Tensor};
use serde::Deserialize;

use crate::{CheckpointError, ParameterPath};

/// The configuration's name in a model directory.
pub const CONFIG_FILE: &str = "config.json";
/// The weights' name in a model directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The tokenizer's name in a model directory.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Names the shards of weights too large for one file.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a safetensors file, or of the shards of one; read when used.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    pub(crate) tensors: BTreeMap<String, PackTensor>,
    /// For renamed tensors, the name in the file.
    names_in_file: BTreeMap<String, String>,
}

/// The number type weights are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SavePrecision {
    /// As the model holds them.
    #[default]
    Unchanged,
    /// 32-bit.
    Float32,
    /// 16-bit with 5 bits of exponent.
    Float16,
    /// 16-bit with 8 bits of exponent.
    BFloat16,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors` of a directory, its shards if `model.safetensors.index.json` stands there instead,
    /// or a single safetensors file.
    ///
    /// # Errors
    /// A [`CheckpointError`] naming the file that is missing, cut short, or not safetensors.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let single = if path.is_dir() { path.join(WEIGHTS_FILE) } else { path.to_path_buf() };
        let index = path.join(INDEX_FILE);
        if single.exists() || !index.exists() {
            return Ok(Self::new(single.clone(), read_tensors(&single)?));
        }
        let text = std::fs::read_to_string(&index).map_err(|e| CheckpointError::io("read", &index, e))?;
        let parsed: ShardIndex =
            serde_json::from_str(&text).map_err(|source| CheckpointError::Json { path: index.clone(), source })?;
        Ok(Self::new(index.clone(), read_shards(path, &index, &parsed.weight_map)?))
    }

    /// The tensors of a safetensors file in memory; errors call it `name`.
    ///
    /// # Errors
    /// [`CheckpointError::Safetensors`] if it is cut short or not safetensors.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        let path = PathBuf::from(name);
        let tensors = tensors_of(SafetensorsStore::from_bytes(Some(bytes)), &path)?;
        Ok(Self::new(path, tensors))
    }

    fn new(path: PathBuf, tensors: BTreeMap<String, PackTensor>) -> Self {
        Self { path, tensors, names_in_file: BTreeMap::new() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The same tensors under other names.
    pub(crate) fn renamed(
        self,
        tensors: BTreeMap<String, PackTensor>,
        names_in_file: BTreeMap<String, String>,
    ) -> Self {
        Self { path: self.path, tensors, names_in_file }
    }

    /// Gives every parameter of `model` its weight, as float32.
    ///
    /// # Errors
    /// A [`CheckpointError`] naming the file and a tensor that is missing, that the model does not know, or whose
    /// shape is another (with both shapes).
    pub fn load_into<M: Module>(&self, model: M) -> Result<M, CheckpointError> {
        self.check_types()?;
        let tensors: Vec<PackTensor> = self.tensors.iter().map(|(name, tensor)| named(tensor, name)).collect();
        let apply = |(mut model, tensors): (M, Vec<PackTensor>)| {
            let result = model.apply(tensors, None, Some(Box::new(from_file())), true);
            (model, result)
        };
        // In memory of their own, as those that are read one by one.
        let (model, result) = match model.devices().first() {
            Some(device) => device.memory_persistent_allocations((model, tensors), apply),
            None => apply((model, tensors)),
        };
        self.check(result)?;
        Ok(model)
    }

    /// The same for a new model of this crate's own parts, no parameter of which has been used, frozen or given a mapper; but each
    /// weight is read from the file when it is first used.
    pub(crate) fn defer_into<M: Module>(&self, model: M) -> Result<M, CheckpointError> {
        self.check_types()?;
        let mut deferred = Deferred {
            checkpoint: self,
            at: ParameterPath::default(),
            found: BTreeSet::new(),
            missing: BTreeMap::new(),
            shape: None,
        };
        let model = model.map(&mut deferred);
        let Deferred { found, missing, shape, .. } = deferred;
        if let Some(error) = shape {
            return Err(error);
        }
        self.check_names(missing.into_values(), self.names().filter(|name| !found.contains(*name)))?;
        Ok(model)
    }

    fn check_types(&self) -> Result<(), CheckpointError> {
        self.tensors
            .iter()
            .try_for_each(|(name, tensor)| check_float(&self.path, &self.name_in_file(name), tensor.dtype))
    }

    /// Nothing may be missing, which is named as in the file, or be of no use to the model.
    fn check_names<'a>(
        &self,
        missing: impl Iterator<Item = String>,
        unused: impl Iterator<Item = &'a str>,
    ) -> Result<(), CheckpointError> {
        let path = self.path.clone();
        let names: Vec<_> = missing.collect();
        if !names.is_empty() {
            return Err(CheckpointError::Missing { path, names });
        }
        let names: Vec<_> = unused.map(|name| self.name_in_file(name)).collect();
        if names.is_empty() { Ok(()) } else { Err(CheckpointError::Unknown { path, names }) }
    }

    fn check(&self, result: ApplyResult) -> Result<(), CheckpointError> {
        if let Some(error) = result.errors.into_iter().next() {
            return Err(self.apply_error(error));
        }
        let missing = result.missing.iter().map(|(name, _)| self.name_in_file(name));
        self.check_names(missing, result.unused.iter().map(String::as_str))
    }

    fn apply_error(&self, error: ApplyError) -> CheckpointError {
        let path = self.path.clone();
        match error {
            ApplyError::ShapeMismatch { path: name, expected, found } => {
                let transposed =
                    found.num_dims() == 2 && name.ends_with(".weight") && !name.ends_with("embedding.weight");
                let in_file = |shape: &burn::tensor::Shape| {
                    let mut dims = shape.to_vec();
                    if transposed {
                        dims.reverse();
                    }
                    dims
                };
                let (expected, got) = (in_file(&expected), in_file(&found));
                CheckpointError::Shape { path, name: self.name_in_file(&name), expected, got }
            }
            other => CheckpointError::Safetensors { path, reason: other.to_string() },
        }
    }

    /// The name in the file of a parameter of the model.
    fn name_in_file(&self, parameter: &str) -> String {
        let name = match parameter.rsplit_once('.') {
            Some((module, "gamma")) => format!("{module}.weight"),
            Some((module, "beta")) => format!("{module}.bias"),
            _ => parameter.to_string(),
        };
        self.names_in_file.get(&name).cloned().unwrap_or(name)
    }
}

/// From a file's layouts and number types to the model's.
fn from_file() -> impl ModuleAdapter + 'static {
    PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32))
}

/// Gives parameters what reads their weights.
struct Deferred<'a> {
    checkpoint: &'a Checkpoint,
    at: ParameterPath,
    /// The tensors that parameters have been found for.
    found: BTreeSet<String>,
    /// Names in the file, in the order of the model's own.
    missing: BTreeMap<String, String>,
    /// The first of a wrong shape.
    shape: Option<CheckpointError>,
}

impl ModuleMapper for Deferred<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.at.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.at.exit(container);
    }

    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.at.name();
        let in_file = self.checkpoint.name_in_file(&name);
        let Some(tensor) = self.checkpoint.tensors.get(&name) else {
            self.missing.insert(self.at.own_name(), in_file);
            return parameter;
        };
        self.found.insert(name);
        let path = self.checkpoint.path.clone();
        let shape = parameter.lazy_shape();
        let adapted = from_file().adapt(tensor.clone(), ModuleContext::new(self.at.containers()));
        if adapted.shape != shape {
            let mut expected = shape.to_vec();
            if D == 2 && self.at.in_linear() {
                expected.reverse();
            }
            let got = tensor.shape.to_vec();
            self.shape.get_or_insert(CheckpointError::Shape { path, name: in_file, expected, got });
            return parameter;
        }
        let read = move |device: &Device, require_grad: bool| match bridge::into_data(adapted) {
            // In memory of its own, as Burn's own initialisers have it.
            Ok(data) => device.memory_persistent_allocations(data, |data| {
                Tensor::<D>::from_data(data, (device, DType::F32)).set_require_grad(require_grad)
            }),
            Err(error) => panic!("tensor {in_file} of {} can no longer be read: {error}", path.display()),
        };
        Param::uninitialized(parameter.id, read, parameter.lazy_device(), true, shape)
    }
}

/// Writes the weights of `model` to `path`, by way of a temporary file beside it.
///
/// # Errors
/// A [`CheckpointError`] naming the file; what stood there before is then unchanged.
pub fn save_weights<M: Module>(model: &M, path: &Path, precision: SavePrecision) -> Result<(), CheckpointError> {
    let store = SafetensorsStore::from_file(path).overwrite(true).skip_enum_variants(true).metadata("format", "pt");
    let cast = |dtype| BurnToPyTorchAdapter.chain(FloatCastAdapter::to(dtype));
    let mut store = match precision {
        SavePrecision::Unchanged => store.with_to_adapter(BurnToPyTorchAdapter),
        SavePrecision::Float32 => store.with_to_adapter(cast(DType::F32)),
        SavePrecision::Float16 => store.with_to_adapter(cast(DType::F16)),
        SavePrecision::BFloat16 => store.with_to_adapter(cast(DType::BF16)),
    };
    // The store's own temporary file is for its owner alone, and stays so when it is renamed.
    let permissions = permissions_for(path).map_err(|source| CheckpointError::io("write", path, source))?;
    model
        .save_into(&mut store)
        .map_err(|error| CheckpointError::Write { path: path.into(), reason: error.to_string() })?;
    std::fs::set_permissions(path, permissions).map_err(|source| CheckpointError::io("write", path, source))
}

/// Reads every tensor from the shard that the index names.
fn read_shards(
    directory: &Path,
    index: &Path,
    weight_map: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, PackTensor>, CheckpointError> {
    let mut tensors = BTreeMap::new();
    let shards: BTreeSet<&String> = weight_map.values().collect();
    for shard in shards {
        // A name and nothing else: an index must not lead out of its directory.
        if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
            let reason = format!("the shard {shard:?} is not a file's name");
            return Err(CheckpointError::Safetensors { path: index.into(), reason });
        }
        let path = directory.join(shard);
        for (name, tensor) in read_tensors(&path)? {
            if weight_map.get(&name) != Some(shard) {
                let reason = format!("it holds tensor {name}, which the index puts elsewhere or does not know");
                return Err(CheckpointError::Safetensors { path, reason });
            }
            tensors.insert(name, tensor);
        }
    }
    let names: Vec<String> = weight_map.keys().filter(|name| !tensors.contains_key(*name)).cloned().collect();
    if names.is_empty() { Ok(tensors) } else { Err(CheckpointError::Missing { path: index.into(), names }) }
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, PackTensor>, CheckpointError> {
    std::fs::File::open(path).map_err(|source| CheckpointError::io("read", path, source))?;
    tensors_of(SafetensorsStore::from_file(path), path)
}

fn tensors_of(mut store: SafetensorsStore, path: &Path) -> Result<BTreeMap<String, PackTensor>, CheckpointError> {
    let tensors = store
        .get_all_tensors()
        .map_err(|error| CheckpointError::Safetensors { path: path.into(), reason: error.to_string() })?;
    Ok(tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect())
}

/// Checks that a tensor holds floating-point numbers.
pub(crate) fn check_float(path: &Path, name: &str, dtype: DType) -> Result<(), CheckpointError> {
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    Err(CheckpointError::DType { path: path.into(), name: name.into(), dtype: format!("{dtype:?}") })
}

pub(crate) fn named(tensor: &PackTensor, name: &str) -> PackTensor {
    let mut tensor = tensor.clone();
    tensor.name = name.to_string();
    tensor
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use burn::nn::LinearConfig;

    use super::*;

    #[test]
    fn saved_weights_have_the_permissions_of_an_ordinary_file() {
        let folder = tempfile::tempdir().unwrap();
        let (plain, weights) = (folder.path().join("plain"), folder.path().join(WEIGHTS_FILE));
        std::fs::write(&plain, "text").unwrap();
        let model = LinearConfig::new(2, 3).init(&Device::flex());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        save_weights(&model, &weights, SavePrecision::Unchanged).unwrap();
        assert_eq!(mode(&weights), mode(&plain));
        // A file that is replaced keeps what its owner gave it.
        std::fs::set_permissions(&weights, std::fs::Permissions::from_mode(0o640)).unwrap();
        save_weights(&model, &weights, SavePrecision::Float16).unwrap();
        assert_eq!(mode(&weights) & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "a temporary file is left");
    }
}
