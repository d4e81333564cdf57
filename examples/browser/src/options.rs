//! What a page may ask for.

use blockformer_generate::Sampling;
use serde::Deserialize;

/// How a prompt is continued.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token, 1 draws as the model says.
    pub temperature: f64,
    /// Only the likeliest tokens of this probability altogether are drawn from.
    pub top_p: f64,
    /// The same seed gives the same text.
    pub seed: u64,
}

impl Default for Options {
    /// Those of `blockformer generate`.
    fn default() -> Self {
        Self { max_new_tokens: 128, temperature: 0.7, top_p: 0.9, seed: 0 }
    }
}

impl Options {
    /// Reads them from JSON.
    ///
    /// # Errors
    /// [`SessionError::Options`](crate::SessionError::Options) naming the field that is wrong.
    pub fn from_json(json: &str) -> Result<Self, crate::SessionError> {
        Ok(serde_json::from_str(json)?)
    }

    pub(crate) fn sampling(&self) -> Sampling {
        let Self { temperature, top_p, seed, .. } = *self;
        Sampling { temperature, top_p: Some(top_p), seed, ..Sampling::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_a_page_writes_them_and_misspelt_ones_are_named() {
        let read = Options::from_json(r#"{"max_new_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": 3}"#).unwrap();
        assert_eq!(read, Options { max_new_tokens: 7, temperature: 0.0, top_p: 0.5, seed: 3 });
        assert_eq!(Options::from_json("{}").unwrap(), Options::default());
        let error = Options::from_json(r#"{"top_k": 7}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `top_k`"), "{error}");
        assert!(Options::from_json(r#"{"seed": -1}"#).is_err());
    }
}
