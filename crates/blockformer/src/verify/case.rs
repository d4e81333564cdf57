//! The files of a case.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blockformer_model::reference::{self, Format, Layout, TrainerFile, Translation};
use blockformer_model::{AnyModel, BlockTransformer, ModelConfig, ParameterPath};
use blockformer_token_decoder::TokenDecoderConfig;
use blockformer_train::{
    Batch, BlockDecodingLoss, BlockDecodingLossKind, GradientAccumulator, LossConfig, Losses, Trainable,
    scale_gradients,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Tolerances, VerifyError, VerifyPrecision};

pub(super) const CASES_FILE: &str = "cases.safetensors";
const EXPECTED_FILE: &str = "expected.json";

/// Numbers of the reference and their shape.
#[derive(Debug, Clone)]
pub(super) struct Array<T> {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<T>,
}

/// A batch of a case.
pub(super) struct CaseBatch {
    pub(super) batch: Batch,
    /// False on padding.
    pub(super) real: Vec<bool>,
    /// What the reference divided the summed loss by. It leaves padding out only where the padding's id is the token
    /// decoder's own `pad_token_id`: 0 for T5, as in the cases, but 1 for GPT-NeoX, where padding in blocks that hold
    /// any content adds no loss, but counts. (Training with this library counts content alone.)
    pub(super) normalizer: f64,
}

/// A case, opened.
pub(super) struct Case {
    pub(super) device: Device,
    pub(super) precision: VerifyPrecision,
    pub(super) config: ModelConfig,
    /// On the autodiff device.
    pub(super) model: AnyModel,
    /// The losses the reference trained on.
    pub(super) losses: LossConfig,
    cases_path: PathBuf,
    expected_path: PathBuf,
    floats: BTreeMap<String, Array<f32>>,
    ints: BTreeMap<String, Array<i64>>,
    expected: Value,
}

impl Case {
    pub(super) fn open(folder: &Path, device: &Device, precision: VerifyPrecision) -> Result<Self, VerifyError> {
        let (cases_path, expected_path) = (folder.join(CASES_FILE), folder.join(EXPECTED_FILE));
        let (floats, ints) = read_arrays(&cases_path)?;
        let text =
            std::fs::read(&expected_path).map_err(|e| VerifyError::Io { path: expected_path.clone(), source: e })?;
        let expected = serde_json::from_slice(&text)
            .map_err(|e| VerifyError::Malformed { path: expected_path.clone(), reason: e.to_string() })?;
        let (config, model) = AnyModel::load(folder, &device.clone().autodiff())?;
        let device = device.clone();
        let losses = losses(folder)?;
        Ok(Self { device, precision, config, model, losses, cases_path, expected_path, floats, ints, expected })
    }

    pub(super) fn tolerances(&self) -> Tolerances {
        self.precision.tolerances()
    }

    /// A batch's losses, and gradients with respect to the float32 weights.
    pub(super) fn backward(
        &self,
        model: &BlockTransformer,
        batch: &Batch,
        normalizer: f64,
    ) -> (Losses, GradientsParams) {
        let scale = self.precision.loss_scale();
        let shadow = self.precision.computes_in().shadow(model);
        let mut losses = shadow.losses(batch, &self.losses.scaled(scale), normalizer / scale);
        let mut accumulator = GradientAccumulator::new();
        accumulator.add(model, losses.graph().backward());
        let mut gradients = accumulator.finish(model);
        if scale != 1.0 {
            scale_gradients(model, &mut gradients, 1.0 / scale);
            losses.block_decoding = losses.block_decoding.map(|loss| loss.div_scalar(scale));
        }
        (losses, gradients)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.ints.contains_key(name)
    }

    pub(super) fn floats(&self, name: &str) -> Result<&Array<f32>, VerifyError> {
        self.floats.get(name).ok_or_else(|| self.missing(name))
    }

    /// For tests that spoil what is expected.
    #[cfg(test)]
    pub(super) fn values_mut(&mut self, name: &str) -> &mut [f32] {
        &mut self.floats.get_mut(name).unwrap().values
    }

    /// Without the numbers whose names begin so.
    #[cfg(test)]
    pub(super) fn forget(&mut self, prefix: &str) {
        self.floats.retain(|name, _| !name.starts_with(prefix));
    }

    /// One of the bundled cases, on the CPU.
    #[cfg(test)]
    pub(super) fn bundled(name: &str, precision: VerifyPrecision) -> Self {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference-cases");
        Self::open(&cases.join(name), &Device::flex(), precision).unwrap()
    }

    pub(super) fn ints(&self, name: &str) -> Result<&Array<i64>, VerifyError> {
        self.ints.get(name).ok_or_else(|| self.missing(name))
    }

    pub(super) fn scalar(&self, name: &str) -> Option<f64> {
        self.expected.get(name).and_then(Value::as_f64)
    }

    pub(super) fn scalars(&self, name: &str) -> Result<Vec<f64>, VerifyError> {
        let missing = || VerifyError::Missing { path: self.expected_path.clone(), name: name.into() };
        let values = self.expected.get(name).and_then(Value::as_array).ok_or_else(missing)?;
        values.iter().map(|value| value.as_f64().ok_or_else(missing)).collect()
    }

    /// The batch named `name.input_ids` and `name.attention_mask`, on the autodiff device.
    pub(super) fn batch(&self, name: &str) -> Result<CaseBatch, VerifyError> {
        let ids = self.ints(&format!("{name}.input_ids"))?;
        let mask = self.ints(&format!("{name}.attention_mask"))?;
        let shape: [usize; 3] = ids.shape.as_slice().try_into().map_err(|_| VerifyError::Malformed {
            path: self.cases_path.clone(),
            reason: format!("{name}.input_ids has shape {:?}, expected [batch, blocks, block_length]", ids.shape),
        })?;
        self.check_ids(&format!("{name}.input_ids"), &ids.values)?;
        if shape[1] < 2 || shape[2] != self.config.block_length() {
            let expected = self.config.block_length();
            return Err(self.malformed(format!("{name}: {shape:?}, expected two blocks or more of {expected} tokens")));
        }
        if mask.shape != ids.shape {
            return Err(VerifyError::Malformed {
                path: self.cases_path.clone(),
                reason: format!("{name}.attention_mask has shape {:?}, expected {:?}", mask.shape, ids.shape),
            });
        }
        let device = self.device.clone().autodiff();
        let real: Vec<bool> = mask.values.iter().map(|value| *value != 0).collect();
        let values: Vec<i32> = ids.values.iter().map(|id| *id as i32).collect();
        let mask = real.contains(&false).then(|| TensorData::new(real.clone(), shape));
        let first_block = |index: usize| index % (shape[1] * shape[2]) < shape[2];
        let batch = Batch {
            ids: Tensor::<3, Int>::from_data(TensorData::new(values, shape), &device),
            mask: mask.map(|mask| Tensor::<3, Bool>::from_data(mask, &device)),
            counted: None,
            first_predicted_block: 1,
            n_predicted: real.iter().enumerate().filter(|(index, real)| **real && !first_block(*index)).count(),
        };
        let blocks = real.chunks(shape[2]).enumerate();
        let counted = blocks.filter(|(index, block)| index % shape[1] > 0 && block.contains(&true)).count();
        let normalizer = if self.counts_padding() { counted * shape[2] } else { batch.n_predicted };
        Ok(CaseBatch { batch, real, normalizer: normalizer as f64 })
    }

    /// The names of arrays that begin with `prefix`, without it.
    pub(super) fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.floats.keys().chain(self.ints.keys());
        names.filter_map(|name| name.strip_prefix(prefix).map(String::from)).collect()
    }

    /// Where the weight that the reference calls `name` is in the model: its path and arrangement.
    pub(super) fn parameter(&self, name: &str) -> Result<(String, Layout), VerifyError> {
        match reference::translate_name(name, &self.config, Format::Trainer) {
            Translation::Parameter(path, layout) => Ok((path, layout)),
            _ => Err(VerifyError::Malformed {
                path: self.cases_path.clone(),
                reason: format!("{name} is not a parameter of the model"),
            }),
        }
    }

    /// Checks that token ids are in the vocabulary.
    fn check_ids(&self, name: &str, ids: &[i64]) -> Result<(), VerifyError> {
        let size = self.config.vocab_size() as i64;
        match ids.iter().find(|id| !(0..size).contains(*id)) {
            Some(id) => Err(self.malformed(format!("{name} holds token id {id}, the vocabulary has {size}"))),
            None => Ok(()),
        }
    }

    /// Token ids `[rows, n]` of the vocabulary, with at least one row and `min` columns.
    pub(super) fn token_rows(&self, name: &str, min: usize) -> Result<(usize, &[i64]), VerifyError> {
        let array = self.ints(name)?;
        match array.shape[..] {
            [rows, n] if rows > 0 && n >= min => {
                self.check_ids(name, &array.values)?;
                Ok((n, &array.values))
            }
            _ => Err(self.malformed(format!("{name} has shape {:?}, expected [rows, at least {min}]", array.shape))),
        }
    }

    fn counts_padding(&self) -> bool {
        match &self.config {
            ModelConfig::BlockTransformer(config) => {
                !matches!(config.token_decoder, TokenDecoderConfig::CrossAttention(_))
            }
            ModelConfig::VanillaTransformer(_) => false,
        }
    }

    pub(super) fn malformed(&self, reason: impl ToString) -> VerifyError {
        VerifyError::Malformed { path: self.cases_path.clone(), reason: reason.to_string() }
    }

    fn missing(&self, name: &str) -> VerifyError {
        VerifyError::Missing { path: self.cases_path.clone(), name: name.into() }
    }
}

/// The losses a trainer file switches on.
fn losses(folder: &Path) -> Result<LossConfig, VerifyError> {
    let path = folder.join("trainer.json");
    if !path.exists() {
        return Ok(LossConfig::default());
    }
    let file = TrainerFile::load(&path)?;
    let kind = |kind| match kind {
        reference::BlockDecodingLossKind::Mse => BlockDecodingLossKind::Mse,
        reference::BlockDecodingLossKind::Contrastive => BlockDecodingLossKind::Contrastive,
    };
    let block_decoding = file.block_decoding_loss.filter(|loss| loss.enable);
    Ok(LossConfig {
        block_decoding: block_decoding.map(|loss| BlockDecodingLoss { kind: kind(loss.kind), weight: loss.weight }),
        auto_encoding_weight: file.auto_encoding_loss.filter(|loss| loss.enable).map(|loss| loss.weight),
    })
}

type Arrays = (BTreeMap<String, Array<f32>>, BTreeMap<String, Array<i64>>);

fn read_arrays(path: &Path) -> Result<Arrays, VerifyError> {
    let bytes = std::fs::read(path).map_err(|source| VerifyError::Io { path: path.into(), source })?;
    let malformed = |reason: String| VerifyError::Malformed { path: path.into(), reason };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| malformed(e.to_string()))?;
    let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
    for (name, view) in tensors.tensors() {
        let (shape, data) = (view.shape().to_vec(), view.data());
        match view.dtype() {
            Dtype::F32 => {
                let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                floats.insert(name, Array { shape, values });
            }
            Dtype::I64 => {
                let value = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
                ints.insert(name, Array { shape, values: data.chunks_exact(8).map(value).collect() });
            }
            other => return Err(malformed(format!("{name} is of type {other:?}, expected F32 or I64"))),
        }
    }
    Ok((floats, ints))
}

/// Calls `visit` with every parameter's path (without enum variants, in PyTorch's words), and its numbers as
/// `value` picks them (its values, or its gradient), linear weights as `[out, in]`.
pub(super) fn for_each_parameter<M: Module>(model: &M, value: impl ParameterValue, visit: impl FnMut(&str, Vec<f32>)) {
    model.visit(&mut Visitor { path: ParameterPath::default(), value, visit });
}

/// Picks a tensor of a parameter.
pub(super) trait ParameterValue {
    fn of<const D: usize>(&self, param: &Param<Tensor<D>>) -> Option<Tensor<D>>;
}

struct Visitor<V, F> {
    path: ParameterPath,
    value: V,
    visit: F,
}

impl<V: ParameterValue, F: FnMut(&str, Vec<f32>)> ModuleVisitor for Visitor<V, F> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        self.path.exit(container_type);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(tensor) = self.value.of(param) else { return };
        let tensor = if D == 2 && self.path.in_linear() { tensor.swap_dims(0, 1) } else { tensor };
        (self.visit)(&self.path.name(), tensor.into_data().iter::<f32>().collect());
    }
}
