//! What is generated.

use serde::Serialize;

use crate::BenchError;

/// Lengths of prompt and continuation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// What it is called in reports.
    pub name: String,
    /// Tokens of every prompt.
    pub prompt_tokens: usize,
    /// Tokens generated for every prompt.
    pub new_tokens: usize,
}

impl Workload {
    /// 2,048 tokens in, 128 out.
    pub fn prefill_heavy() -> Self {
        Self { name: "prefill-heavy".into(), prompt_tokens: 2048, new_tokens: 128 }
    }

    /// 128 tokens in, 2,048 out.
    pub fn decode_heavy() -> Self {
        Self { name: "decode-heavy".into(), prompt_tokens: 128, new_tokens: 2048 }
    }

    /// Both lengths divided by `divisor`; the name says so.
    ///
    /// # Errors
    /// [`BenchError::Range`] if nothing would be left of a length.
    pub fn scaled(mut self, divisor: usize) -> Result<Self, BenchError> {
        let shortest = self.prompt_tokens.min(self.new_tokens);
        if divisor == 0 || divisor > shortest {
            return Err(BenchError::Range {
                what: "the divisor",
                value: divisor,
                expected: "1 up to the shorter length",
            });
        }
        (self.prompt_tokens, self.new_tokens) = (self.prompt_tokens / divisor, self.new_tokens / divisor);
        if divisor > 1 {
            self.name = format!("{}/{divisor}", self.name);
        }
        Ok(self)
    }

    /// Tokens of prompt and continuation, each rounded up to whole blocks.
    pub fn context(&self, block_length: usize) -> usize {
        self.prompt_tokens.next_multiple_of(block_length) + self.new_tokens.next_multiple_of(block_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_paper_and_scale() {
        let half = Workload::decode_heavy().scaled(8).unwrap();
        assert_eq!((half.prompt_tokens, half.new_tokens, half.name.as_str()), (16, 256, "decode-heavy/8"));
        assert_eq!(Workload::prefill_heavy().scaled(1).unwrap(), Workload::prefill_heavy());
        assert!(Workload::prefill_heavy().scaled(129).is_err());
        assert!(Workload::prefill_heavy().scaled(0).is_err());
        assert_eq!(half.context(5), 20 + 260);
    }
}
