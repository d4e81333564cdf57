use super::*;

const LN_2: f32 = std::f32::consts::LN_2;
const HALF: [f32; 4] = [0.0, -LN_2, -2.0 * LN_2, -2.0 * LN_2]; // 4 : 2 : 1 : 1

/// How often each token is drawn in `n` tries, each a sequence of its own.
fn frequencies(sampling: Sampling, prompt: &[u32], logits: &[f32], n: usize) -> Vec<f64> {
    sampling.validate(logits.len()).unwrap();
    let mut counts = vec![0.0; logits.len()];
    for index in 0..n {
        let token = Sampler::new(sampling.clone(), index, prompt).sample(logits).unwrap();
        counts[token as usize] += 1.0 / n as f64;
    }
    counts
}

fn assert_close(got: &[f64], expected: &[f64]) {
    let total: f64 = expected.iter().sum();
    let close = got.iter().zip(expected).all(|(got, weight)| (got - weight / total).abs() < 0.012);
    assert!(close, "{got:?} instead of {expected:?}");
}

fn at_one() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

#[test]
fn tokens_are_drawn_as_often_as_their_probability_says() {
    assert_close(&frequencies(at_one(), &[], &HALF, 40_000), &[4.0, 2.0, 1.0, 1.0]);
    let cooler = Sampling { temperature: 0.5, ..at_one() };
    assert_close(&frequencies(cooler, &[], &HALF, 40_000), &[16.0, 4.0, 1.0, 1.0]);
}

/// Beyond what float32 divides by.
#[test]
fn temperatures_without_end_are_numbers() {
    let logits = [-1.0, 2.0, f32::NEG_INFINITY, 2.0];
    let coldest = Sampling { temperature: 1e-40, ..at_one() };
    assert_close(&frequencies(coldest, &[], &logits, 10_000), &[0.0, 1.0, 0.0, 1.0]);
    let hottest = Sampling { temperature: 1e300, ..at_one() };
    assert_close(&frequencies(hottest, &[], &logits, 10_000), &[1.0, 1.0, 0.0, 1.0]);
}

#[test]
fn filters_leave_what_they_should() {
    let frequencies = |sampling| frequencies(sampling, &[], &HALF, 20_000);
    assert_close(&frequencies(Sampling { top_k: Some(2), ..at_one() }), &[4.0, 2.0, 0.0, 0.0]);
    assert_close(&frequencies(Sampling { top_p: Some(0.74), ..at_one() }), &[4.0, 2.0, 0.0, 0.0]);
    // Ties: the smaller id comes in first.
    assert_close(&frequencies(Sampling { top_p: Some(0.76), ..at_one() }), &[4.0, 2.0, 1.0, 0.0]);
    assert_close(&frequencies(Sampling { min_p: Some(0.4), ..at_one() }), &[4.0, 2.0, 0.0, 0.0]);
    // Information 1, 2, 3, 3 bits, expected 1.75: the second is the most typical, then the first.
    assert_close(&frequencies(Sampling { typical_p: Some(0.2), ..at_one() }), &[0.0, 2.0, 0.0, 0.0]);
    assert_close(&frequencies(Sampling { typical_p: Some(0.7), ..at_one() }), &[4.0, 2.0, 0.0, 0.0]);
    let both = Sampling { top_k: Some(2), top_p: Some(0.6), ..at_one() }; // of what top_k leaves
    assert_close(&frequencies(both), &[4.0, 0.0, 0.0, 0.0]);
}

/// Logits after bias, penalties and hook.
fn adjusted(sampling: Sampling, prompt: &[u32], generated: &[u32], logits: &[f32]) -> Vec<f32> {
    let mut sampler = Sampler::new(sampling, 0, prompt);
    generated.iter().for_each(|token| sampler.push(*token));
    sampler.adjusted(logits, &mut Vec::new()).map_or(logits.to_vec(), <[f32]>::to_vec)
}

#[test]
fn penalties_count_the_whole_sequence() {
    let logits = [2.0, -1.0, 3.0, 1.0];
    let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    // The prompt counts, and a second occurrence changes nothing more.
    assert_eq!(adjusted(repetition, &[0, 0], &[1, 1, 1], &logits), [1.0, -2.0, 3.0, 1.0]);
    let presence = Sampling { presence_penalty: 0.5, ..Sampling::default() };
    assert_eq!(adjusted(presence, &[0], &[2, 2], &logits), [2.0, -1.0, 2.5, 1.0]);
    let frequency = Sampling { frequency_penalty: 0.5, ..Sampling::default() };
    assert_eq!(adjusted(frequency, &[0], &[2, 2, 1], &logits), [2.0, -1.5, 2.0, 1.0]);
    let bias = Sampling { logit_bias: vec![(3, 5.0), (2, f32::NEG_INFINITY)], ..Sampling::default() };
    assert_eq!(adjusted(bias, &[], &[], &logits), [2.0, -1.0, f32::NEG_INFINITY, 6.0]);
}

#[test]
fn a_hook_sees_all_tokens_and_decides_what_may_come() {
    // Only the successor of the last token.
    let hook = LogitsHook::new(|tokens, logits| {
        let next = tokens.last().map_or(0, |token| token + 1);
        logits.iter_mut().enumerate().filter(|(id, _)| *id as u32 != next).for_each(|(_, x)| *x = f32::NEG_INFINITY);
    });
    for sampling in [Sampling::greedy(), Sampling { top_k: Some(3), ..at_one() }] {
        let mut sampler = Sampler::new(sampling, 0, &[5]).with_hook(Some(hook.clone()));
        let drawn: Vec<u32> = (0..3).map(|_| sampler.sample(&[1.0; 9]).unwrap()).collect();
        assert_eq!(drawn, [6, 7, 8]);
        assert_eq!(sampler.tokens(), [5, 6, 7, 8]);
        assert_eq!(sampler.sample(&[1.0; 9]), Err(GenerateError::NothingAllowed));
    }
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    let mut sampler = Sampler::new(Sampling::greedy(), 0, &[]);
    assert_eq!(sampler.sample(&[0.0, 2.0, 1.0, 2.0]), Ok(1));
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -3.0]), Ok(1));
}

#[test]
fn seeds_and_samples_have_random_numbers_of_their_own() {
    let draw = |seed, index| {
        let mut sampler = Sampler::new(Sampling { seed, ..at_one() }, index, &[]);
        (0..20).map(|_| sampler.sample(&[0.0; 50]).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(1, 0), draw(1, 0));
    assert_ne!(draw(1, 0), draw(2, 0));
    assert_ne!(draw(1, 0), draw(1, 1));
}

#[test]
fn senseless_options_are_refused() {
    let refused = |sampling: Sampling| sampling.validate(10).unwrap_err().to_string();
    let default = Sampling::default;
    assert!(refused(Sampling { temperature: -1.0, ..default() }).contains("temperature is -1"));
    assert!(refused(Sampling { temperature: f64::NAN, ..default() }).contains("temperature"));
    assert!(refused(Sampling { top_k: Some(0), ..default() }).contains("top_k"));
    assert!(refused(Sampling { top_p: Some(1.5), ..default() }).contains("top_p"));
    assert!(refused(Sampling { min_p: Some(-0.1), ..default() }).contains("min_p"));
    assert!(refused(Sampling { typical_p: Some(0.0), ..default() }).contains("typical_p"));
    assert!(refused(Sampling { repetition_penalty: 0.0, ..default() }).contains("repetition_penalty"));
    assert!(refused(Sampling { presence_penalty: f64::INFINITY, ..default() }).contains("presence_penalty"));
    assert!(refused(Sampling { logit_bias: vec![(10, 1.0)], ..default() }).contains("logit_bias"));
    assert!(refused(Sampling { logit_bias: vec![(1, f32::NAN)], ..default() }).contains("logit_bias"));
    assert!(refused(Sampling { logit_bias: vec![(1, 1.0), (1, 2.0)], ..default() }).contains("two biases"));
    assert!(refused(Sampling { typical_p: Some(0.5), ..default() }).contains("temperature 0 and typical_p"));
}

#[test]
fn logits_that_are_not_numbers_are_refused() {
    let mut sampler = Sampler::new(Sampling::greedy(), 0, &[]);
    for logits in [[1.0, f32::NAN], [f32::NEG_INFINITY; 2], [1.0, f32::INFINITY]] {
        assert_eq!(sampler.sample(&logits), Err(GenerateError::NotANumber));
    }
}
