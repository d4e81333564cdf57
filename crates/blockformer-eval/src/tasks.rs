//! Zero-shot tasks, in the manner of lm-evaluation-harness.
//!
//! A task asks for the log-likelihood of answers after a prompt. `acc` is the share of questions whose right answer is
//! the likeliest; `acc_norm` the same with log-likelihoods divided by the answers' lengths in characters. LAMBADA has
//! one answer, a text's last word: it counts as right where greedy decoding would give just its tokens.
//!
//! Context and answer are tokenized together and then split where the tokens of the context alone end, and white space
//! at the end of a context belongs to the answer.

mod files;

use std::path::Path;

use blockformer_data::Tokenizer;
use burn::tensor::Device;
use serde::Serialize;

use crate::{EvalError, Request, Scorable, Score, ScoreConfig, score};

/// A prompt and its possible answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The prompt.
    pub context: String,
    /// The answers, without the space between the prompt and them.
    pub choices: Vec<String>,
    /// Which of them is right.
    pub gold: usize,
}

/// What is asked about a task's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Which is the likeliest.
    Choice,
    /// Whether the only one is what the model would write.
    LastWord,
}

/// Questions of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What is asked.
    pub kind: TaskKind,
    /// The questions.
    pub items: Vec<Item>,
}

/// A share of right answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    /// The share.
    pub value: f64,
    /// The standard error of the mean, by the sample's standard deviation; 0 for a single question.
    pub stderr: f64,
}

impl Measure {
    fn of(right: &[bool]) -> Self {
        let n = right.len() as f64;
        let value = right.iter().filter(|right| **right).count() as f64 / n;
        let stderr = if right.len() > 1 { (value * (1.0 - value) / (n - 1.0)).sqrt() } else { 0.0 };
        Self { value, stderr }
    }
}

/// How a model did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskResult {
    /// The task's name.
    pub task: String,
    /// Questions asked.
    pub n_items: usize,
    /// The share of right answers.
    pub acc: Measure,
    /// The same by the likelihood a character; of choices only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Measure>,
    /// `exp` of the mean negative log-likelihood of the answers, each a word; of last words only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

impl Task {
    /// LAMBADA: plain text, a document a line, whose last word is asked for; or JSONL with such texts in `text`.
    ///
    /// # Errors
    /// [`EvalError`] naming the file, and the line that is not right.
    pub fn lambada(path: &Path) -> Result<Self, EvalError> {
        Self::new("lambada", TaskKind::LastWord, files::lambada(path)?, path)
    }

    /// PIQA: JSONL with `goal`, `sol1` and `sol2`, and a file of labels, 0 or 1 a line.
    ///
    /// # Errors
    /// [`EvalError`] naming the file, and the line that is not right.
    pub fn piqa(questions: &Path, labels: &Path) -> Result<Self, EvalError> {
        Self::new("piqa", TaskKind::Choice, files::piqa(questions, labels)?, questions)
    }

    /// ARC, Easy or Challenge: JSONL as AI2 gives it out.
    ///
    /// # Errors
    /// [`EvalError`] naming the file, and the line that is not right.
    pub fn arc(name: &str, path: &Path) -> Result<Self, EvalError> {
        Self::new(name, TaskKind::Choice, files::arc(path)?, path)
    }

    fn new(name: &str, kind: TaskKind, items: Vec<Item>, path: &Path) -> Result<Self, EvalError> {
        if items.is_empty() {
            return Err(EvalError::Empty { what: path.display().to_string() });
        }
        Ok(Self { name: name.into(), kind, items })
    }

    /// Asks a model the first `limit` questions, all if there is no limit.
    ///
    /// # Errors
    /// As [`score`], and [`EvalError::Data`] if a question cannot be tokenized.
    pub fn run<M: Scorable>(
        &self,
        model: &M,
        tokenizer: &Tokenizer,
        limit: Option<usize>,
        config: &ScoreConfig,
        device: &Device,
    ) -> Result<TaskResult, EvalError> {
        let items = &self.items[..self.items.len().min(limit.unwrap_or(usize::MAX))];
        if items.is_empty() {
            return Err(EvalError::Empty { what: self.name.clone() });
        }
        let requests = items.iter().flat_map(|item| {
            item.choices.iter().map(|choice| request(tokenizer, &item.context, &format!(" {choice}")))
        });
        let requests: Vec<Request> = requests.collect::<Result<_, _>>()?;
        let mut scores = score(model, &requests, config, device)?.into_iter();
        let scores: Vec<Vec<Score>> =
            items.iter().map(|item| scores.by_ref().take(item.choices.len()).collect()).collect();
        Ok(self.result(items, &scores))
    }

    fn result(&self, items: &[Item], scores: &[Vec<Score>]) -> TaskResult {
        let (task, n_items) = (self.name.clone(), items.len());
        let asked = || items.iter().zip(scores);
        match self.kind {
            TaskKind::LastWord => {
                let right: Vec<bool> = asked().map(|(item, scores)| scores[item.gold].is_greedy()).collect();
                let nats: f64 = asked().map(|(item, scores)| -scores[item.gold].log_likelihood()).sum();
                let perplexity = Some((nats / n_items as f64).exp());
                TaskResult { task, n_items, acc: Measure::of(&right), acc_norm: None, perplexity }
            }
            TaskKind::Choice => {
                let right = |length: fn(&str) -> f64| -> Vec<bool> {
                    let value = |choice: &String, score: &Score| score.log_likelihood() / length(choice);
                    let best = |(item, scores): (&Item, &Vec<Score>)| {
                        let values: Vec<f64> = item.choices.iter().zip(scores).map(|(c, s)| value(c, s)).collect();
                        first_largest(&values) == item.gold
                    };
                    asked().map(best).collect()
                };
                let acc = Measure::of(&right(|_| 1.0));
                let acc_norm = Some(Measure::of(&right(|choice| choice.chars().count() as f64)));
                TaskResult { task, n_items, acc, acc_norm, perplexity: None }
            }
        }
    }
}

fn first_largest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, index| if values[index] > values[best] { index } else { best })
}

/// Splits tokens of context and continuation as lm-evaluation-harness does.
fn request(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<Request, EvalError> {
    let trimmed = context.trim_end();
    let whole = tokenizer.encode(&format!("{context}{continuation}"))?;
    let n_context = tokenizer.encode(trimmed)?.len();
    Ok(Request { context: whole[..n_context].to_vec(), continuation: whole[n_context..].to_vec() })
}

#[cfg(test)]
mod tests {
    use blockformer_data::TokenizerTraining;

    use super::*;

    fn score(log_probabilities: &[f32], greedy: bool) -> Score {
        Score { log_probabilities: log_probabilities.to_vec(), likeliest: vec![greedy; log_probabilities.len()] }
    }

    fn item(choices: &[&str], gold: usize) -> Item {
        Item { context: "c".into(), choices: choices.iter().map(ToString::to_string).collect(), gold }
    }

    #[test]
    fn the_likeliest_answer_and_the_likeliest_a_character_may_differ() {
        let task = Task { name: "t".into(), kind: TaskKind::Choice, items: vec![item(&["ab", "abcdefgh"], 1); 2] };
        // Sums -2 and -4; a character -1 and -0.5.
        let scores = vec![score(&[-1.0, -1.0], false), score(&[-4.0], false)];
        let other = vec![score(&[-9.0], false), score(&[-4.0], false)];
        let result = task.result(&task.items, &[scores, other]);
        assert_eq!((result.acc.value, result.acc_norm.unwrap().value), (0.5, 1.0));
        // The sample's standard deviation of 0 and 1 is the root of one half; by the root of 2.
        assert!((result.acc.stderr - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_last_word_is_right_when_greedy_decoding_gives_all_of_it() {
        let task = Task { name: "t".into(), kind: TaskKind::LastWord, items: vec![item(&["w"], 0); 4] };
        let mut partly = score(&[-1.0, -1.0], true);
        partly.likeliest[1] = false;
        let scores = [score(&[-2.0], true), partly, score(&[-4.0], false), score(&[0.0], true)].map(|s| vec![s]);
        let result = task.result(&task.items, &scores);
        assert_eq!(result.acc.value, 0.5);
        assert!((result.perplexity.unwrap() - 2.0_f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn white_space_at_the_end_of_a_context_belongs_to_the_answer() {
        let training = TokenizerTraining::new(400);
        let tokenizer = training.train_byte_level_bpe(vec!["the cat sat"; 9].into_iter()).unwrap();
        for (context, continuation) in [("the cat", " sat"), ("the cat ", "sat")] {
            let request = request(&tokenizer, context, continuation).unwrap();
            assert_eq!(tokenizer.decode(&request.context).unwrap(), "the cat");
            assert_eq!(tokenizer.decode(&request.continuation).unwrap(), " sat");
        }
    }
}
