//! The options of sampling.

use serde::{Deserialize, Serialize};

use crate::GenerateError;

/// How tokens are drawn. The default is greedy.
///
/// Logits first get the bias and the penalties, then the temperature; `top_k`, `top_p`, `min_p` and `typical_p` then
/// narrow the choice in this order, each of them looking at what the ones before have left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token (greedy), 1 draws from the model's distribution.
    pub temperature: f64,
    /// Only the `k` likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities add up to at least this are drawn from (nucleus sampling,
    /// Holtzman et al. 2020).
    pub top_p: Option<f64>,
    /// Only tokens at least this share as likely as the likeliest are drawn from.
    pub min_p: Option<f64>,
    /// Only the tokens whose information is closest to the expected one, up to this probability altogether, are drawn
    /// from (locally typical sampling, Meister et al. 2023). It may leave out the likeliest token.
    pub typical_p: Option<f64>,
    /// Divides the logits of tokens of the prompt and of the text so far where they are positive and multiplies them
    /// where they are negative (Keskar et al. 2019); 1 changes nothing.
    pub repetition_penalty: f64,
    /// Taken off the logits of tokens that were generated before.
    pub presence_penalty: f64,
    /// Taken off the logits of tokens that were generated before, as often as they were.
    pub frequency_penalty: f64,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and options give the same tokens, whatever else is generated at the same time.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Whether no random number is needed.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// What logits are multiplied with: neither zero nor infinite, with which infinite logits, or the likeliest, would be no numbers.
    pub(crate) fn inverse_temperature(&self) -> f32 {
        (1.0 / self.temperature as f32).clamp(f32::MIN_POSITIVE, f32::MAX)
    }

    /// Checks the options for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`GenerateError::Sampling`] naming the option outside its range, [`GenerateError::OutOfVocabulary`] or
    /// [`GenerateError::Contradiction`].
    pub fn validate(&self, vocab_size: usize) -> Result<(), GenerateError> {
        let refuse = |option, value, expected| Err(GenerateError::Sampling { option, value, expected });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "0 (greedy) or a positive number");
        }
        if self.top_k == Some(0) {
            return refuse("top_k", 0.0, "at least 1");
        }
        for (option, share) in [("top_p", self.top_p), ("typical_p", self.typical_p)] {
            if let Some(p) = share.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
                return refuse(option, p, "a number above 0 and up to 1");
            }
        }
        if let Some(p) = self.min_p.filter(|p| !(*p >= 0.0 && *p <= 1.0)) {
            return refuse("min_p", p, "a number from 0 to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse("repetition_penalty", self.repetition_penalty, "a positive number (1 changes nothing)");
        }
        for (option, penalty) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !penalty.is_finite() {
                return refuse(option, penalty, "a number (0 changes nothing)");
            }
        }
        self.validate_bias(vocab_size)?;
        if self.is_greedy() && self.typical_p.is_some_and(|p| p < 1.0) {
            return Err(GenerateError::Contradiction {
                options: "temperature 0 and typical_p",
                reason: "the likeliest token may not be among the typical ones",
            });
        }
        Ok(())
    }

    fn validate_bias(&self, vocab_size: usize) -> Result<(), GenerateError> {
        for (index, &(id, bias)) in self.logit_bias.iter().enumerate() {
            if id as usize >= vocab_size {
                return Err(GenerateError::OutOfVocabulary { option: "logit_bias", id, vocab_size });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let expected = "a number, or negative infinity to forbid the token";
                return Err(GenerateError::Sampling { option: "logit_bias", value: f64::from(bias), expected });
            }
            if self.logit_bias[..index].iter().any(|(other, _)| *other == id) {
                return Err(GenerateError::Contradiction { options: "logit_bias", reason: "a token has two biases" });
            }
        }
        Ok(())
    }

    /// Whether logits are used as the model gives them.
    pub(crate) fn keeps_logits(&self) -> bool {
        self.logit_bias.is_empty()
            && self.repetition_penalty == 1.0
            && self.presence_penalty == 0.0
            && self.frequency_penalty == 0.0
    }
}
