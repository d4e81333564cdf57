//! A session whose kind of model is known at run time only.

#[cfg(feature = "flex")]
use blockformer_cpu::{CpuModel, Precision};
use blockformer_data::Tokenizer;
use blockformer_model::AnyModel;
use burn::tensor::Device;

use crate::{Description, Options, Piece, Session, SessionError, Step};

/// A [`Session`] of a plain or a packed model.
#[derive(Debug)]
pub enum AnySession {
    /// On Burn's operations, on any device.
    Plain(Session<AnyModel>),
    /// On the CPU's kernels.
    #[cfg(feature = "flex")]
    Packed(Session<CpuModel>),
}

/// Calls the session inside, whichever it is.
macro_rules! inner {
    ($self:ident, $session:ident => $call:expr) => {
        match $self {
            Self::Plain($session) => $call,
            #[cfg(feature = "flex")]
            Self::Packed($session) => $call,
        }
    };
}

impl AnySession {
    /// Opens a model on Burn's operations, from the contents of `config.json`, `model.safetensors` and
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// A [`SessionError`] that says which of them is wrong.
    pub fn plain(config: &str, weights: &[u8], tokenizer: &[u8], device: &Device) -> Result<Self, SessionError> {
        let tokenizer = Tokenizer::from_bytes(tokenizer)?;
        let (config, model) = AnyModel::from_bytes(config, weights, device)?;
        Ok(Self::Plain(Session::new(&config, model, tokenizer, device)?))
    }

    /// The same with its weights packed for the CPU's kernels, in float32; on Burn's operations if it has no packed
    /// form. `device` must be a CPU.
    ///
    /// # Errors
    /// As [`plain`](Self::plain).
    #[cfg(feature = "flex")]
    pub fn packed(config: &str, weights: &[u8], tokenizer: &[u8], device: &Device) -> Result<Self, SessionError> {
        let tokenizer = Tokenizer::from_bytes(tokenizer)?;
        let (config, model) = AnyModel::from_bytes(config, weights, device)?;
        if CpuModel::supports(&config).is_err() {
            return Ok(Self::Plain(Session::new(&config, model, tokenizer, device)?));
        }
        let model = CpuModel::new(&config, model, Precision::F32)?;
        Ok(Self::Packed(Session::new(&config, model, tokenizer, device)?))
    }

    /// What the model is.
    pub fn description(&self) -> Description {
        inner!(self, session => session.description())
    }

    /// See [`Session::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(&mut self, prompt: &str, options: &Options) -> Result<Vec<Piece>, SessionError> {
        inner!(self, session => session.start(prompt, options))
    }

    /// See [`Session::step`].
    ///
    /// # Errors
    /// As there.
    pub async fn step(&mut self) -> Result<Step, SessionError> {
        inner!(self, session => session.step().await)
    }

    /// See [`Session::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&mut self) -> Result<Step, SessionError> {
        inner!(self, session => session.stop())
    }
}
