//! What JavaScript sees.

use burn::tensor::Device;
use serde::Serialize;
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::*;

use crate::{AnySession, Options, SessionError};

/// A model with its tokenizer. Answers are JSON; errors are JavaScript errors with a message for the user.
#[wasm_bindgen]
#[derive(Debug)]
pub struct BrowserModel(AnySession);

/// Makes panics errors with their message, instead of `unreachable executed`. The module is of no use after one.
#[wasm_bindgen(start)]
fn show_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.to_string();
        // Where nobody catches it, as in tasks of the GPU's runtime, the console has it.
        if let Ok(console) = js_sys::Reflect::get(&js_sys::global(), &"console".into())
            && let Ok(error) = js_sys::Reflect::get(&console, &"error".into())
            && let Some(error) = error.dyn_ref::<js_sys::Function>()
        {
            let _ = error.call1(&console, &message.as_str().into());
        }
        wasm_bindgen::throw_str(&message)
    }));
}

#[wasm_bindgen]
impl BrowserModel {
    /// Opens a model from the contents of its three files, on `backend`: `cpu` (packed weights) or `flex` (Burn's
    /// operations) in a build with the feature `flex`, `webgpu` in one with the feature `webgpu`.
    pub async fn open(backend: &str, config: &str, weights: &[u8], tokenizer: &[u8]) -> Result<BrowserModel, JsError> {
        let session = match backend {
            #[cfg(feature = "flex")]
            "cpu" => AnySession::packed(config, weights, tokenizer, &Device::flex()),
            #[cfg(feature = "flex")]
            "flex" => AnySession::plain(config, weights, tokenizer, &Device::flex()),
            #[cfg(feature = "webgpu")]
            "webgpu" => {
                let device = Device::wgpu_options().init_async().await?;
                AnySession::plain(config, weights, tokenizer, &device)
            }
            _ => return Err(JsError::new(&format!("this build has no backend {backend:?}"))),
        };
        Ok(Self(session?))
    }

    /// What the model is.
    pub fn description(&self) -> Result<String, JsError> {
        json(Ok(self.0.description()))
    }

    /// Takes a prompt to go on from and JSON options, and returns the prompt's pieces.
    pub fn start(&mut self, prompt: &str, options: &str) -> Result<String, JsError> {
        json(Options::from_json(options).and_then(|options| self.0.start(prompt, &options)))
    }

    /// The next block.
    pub async fn step(&mut self) -> Result<String, JsError> {
        json(self.0.step().await)
    }

    /// Gives the prompt up: what was held back.
    pub fn stop(&mut self) -> Result<String, JsError> {
        json(self.0.stop())
    }
}

fn json<T: Serialize>(answer: Result<T, SessionError>) -> Result<String, JsError> {
    Ok(serde_json::to_string(&answer?)?)
}
