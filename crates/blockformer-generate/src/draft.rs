//! Guessing the next tokens from the text so far.

/// The tokens that followed the latest earlier occurrence of the last tokens of a text: of the last `longest` of them
/// if there is one, or of fewer, down to `shortest`. At most `n`, none if nothing occurred before.
pub(crate) fn draft(tokens: &[u32], longest: usize, shortest: usize, n: usize) -> &[u32] {
    for length in (shortest..=longest).rev() {
        if tokens.len() <= length {
            continue;
        }
        let last = &tokens[tokens.len() - length..];
        let earlier = &tokens[..tokens.len() - 1];
        if let Some(at) = earlier.windows(length).rposition(|window| window == last) {
            let follows = &tokens[at + length..];
            return &follows[..follows.len().min(n)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_and_longest_occurrence_is_followed() {
        let text = [1, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3];
        assert_eq!(draft(&text, 3, 1, 2), [5, 7]);
        assert_eq!(draft(&[9, 9, 1, 2, 3, 4, 8, 2, 3, 6, 1, 2, 3], 3, 1, 9), [4, 8, 2, 3, 6, 1, 2, 3]);
        assert_eq!(draft(&[1, 2, 3], 3, 1, 4), [0u32; 0]);
        assert_eq!(draft(&[5, 5], 3, 1, 4), [5]);
        assert_eq!(draft(&[], 3, 1, 4), [0u32; 0]);
    }
}
