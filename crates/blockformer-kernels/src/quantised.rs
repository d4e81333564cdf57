//! Weights of 8 and 4 bits, in groups that share a scale.

use crate::packed::F32Row;
use crate::simd::PANEL;

/// Consecutive inputs of one column that share a scale.
pub(crate) const GROUP: usize = 32;

/// 32 columns at one input, -127 to 127.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Int8Row(pub(crate) [i8; PANEL]);

/// 32 columns at one input, -8 to 7, each plus 8: columns 0 to 15 in the low halves, 16 to 31 in the high halves.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Int4Row(pub(crate) [u8; PANEL / 2]);

impl Int4Row {
    /// The code of a column.
    pub(crate) fn code(&self, column: usize) -> f32 {
        let byte = self.0[column % (PANEL / 2)];
        let nibble = if column < PANEL / 2 { byte & 15 } else { byte >> 4 };
        f32::from(nibble) - 8.0
    }

    fn set(&mut self, column: usize, code: f32) {
        let nibble = (code + 8.0) as u8;
        let byte = &mut self.0[column % (PANEL / 2)];
        *byte |= if column < PANEL / 2 { nibble } else { nibble << 4 };
    }
}

/// The codes of a panel and its scales, one row of scales a group.
pub(crate) fn int8(panel: &[F32Row]) -> (Vec<Int8Row>, Vec<F32Row>) {
    let mut codes = vec![Int8Row([0; PANEL]); panel.len()];
    let mut scales = vec![F32Row([0.0; PANEL]); panel.len().div_ceil(GROUP)];
    for ((group, codes), scales) in panel.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(&mut scales) {
        for column in 0..PANEL {
            let largest = group.iter().fold(0.0f32, |max, row| max.max(row.0[column].abs()));
            let scale = largest / 127.0;
            scales.0[column] = scale;
            let inverse = if scale > 0.0 { scale.recip() } else { 0.0 };
            for (row, codes) in group.iter().zip(codes.iter_mut()) {
                codes.0[column] = (row.0[column] * inverse).round() as i8;
            }
        }
    }
    (codes, scales)
}

/// The same with 4 bits.
pub(crate) fn int4(panel: &[F32Row]) -> (Vec<Int4Row>, Vec<F32Row>) {
    let mut codes = vec![Int4Row([0; PANEL / 2]); panel.len()];
    let mut scales = vec![F32Row([0.0; PANEL]); panel.len().div_ceil(GROUP)];
    let mut weights = [0.0; GROUP];
    for ((group, codes), scales) in panel.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(&mut scales) {
        for column in 0..PANEL {
            let weights = &mut weights[..group.len()];
            weights.iter_mut().zip(group).for_each(|(weight, row)| *weight = row.0[column]);
            let scale = int4_scale(weights);
            scales.0[column] = scale;
            for (weight, codes) in weights.iter().zip(codes.iter_mut()) {
                codes.set(column, int4_code(*weight, scale));
            }
        }
    }
    (codes, scales)
}

fn int4_code(weight: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (weight / scale).round().clamp(-8.0, 7.0) }
}

/// The scale with the least squared error among some near the one that maps the largest weight to -8 (so the scale's
/// sign is that of the smaller extreme), each refined once by least squares for its codes.
fn int4_scale(weights: &[f32]) -> f32 {
    let extreme = weights.iter().fold(0.0f32, |max, w| if w.abs() > max.abs() { *w } else { max });
    if extreme == 0.0 || !extreme.is_finite() {
        return 0.0;
    }
    let (mut best, mut least) = (extreme / -8.0, f32::INFINITY);
    for levels in [-8.0, -7.6, -7.2, -6.8, -6.4, 7.0, 6.6] {
        let candidate = extreme / levels;
        let (mut products, mut squares) = (0.0, 0.0);
        for &weight in weights {
            let code = int4_code(weight, candidate);
            products += code * weight;
            squares += code * code;
        }
        let refined = if squares > 0.0 { products / squares } else { candidate };
        for scale in [candidate, refined] {
            let error: f32 = weights.iter().map(|w| (w - scale * int4_code(*w, scale)).powi(2)).sum();
            if error < least {
                (best, least) = (scale, error);
            }
        }
    }
    best
}
