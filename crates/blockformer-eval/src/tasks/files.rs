//! The files of tasks.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Item;
use crate::EvalError;

#[derive(Deserialize)]
struct Lambada {
    text: String,
}

#[derive(Deserialize)]
struct Piqa {
    goal: String,
    sol1: String,
    sol2: String,
}

#[derive(Deserialize)]
struct Arc {
    question: Question,
    #[serde(rename = "answerKey")]
    answer_key: String,
}

#[derive(Deserialize)]
struct Question {
    stem: String,
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    text: String,
    label: String,
}

pub(super) fn lambada(path: &Path) -> Result<Vec<Item>, EvalError> {
    let is_jsonl = path.extension().is_some_and(|ending| ending == "jsonl");
    let text_of = |(line, text): (usize, String)| {
        if is_jsonl { parse::<Lambada>(path, line, &text).map(|parsed| (line, parsed.text)) } else { Ok((line, text)) }
    };
    let item_of = |(line, text): (usize, String)| match text.trim().rsplit_once(' ') {
        Some((context, word)) => Ok(Item { context: context.into(), choices: vec![word.into()], gold: 0 }),
        None => Err(EvalError::Line { path: path.into(), line, reason: "expected at least two words".into() }),
    };
    lines(path)?.into_iter().map(|line| item_of(text_of(line)?)).collect()
}

pub(super) fn piqa(questions: &Path, labels: &Path) -> Result<Vec<Item>, EvalError> {
    let (lines_of_questions, lines_of_labels) = (lines(questions)?, lines(labels)?);
    if lines_of_questions.len() != lines_of_labels.len() {
        let (expected, got) = (lines_of_questions.len(), lines_of_labels.len());
        return Err(EvalError::Labels { path: labels.into(), expected, got });
    }
    let both = lines_of_questions.into_iter().zip(lines_of_labels);
    both.map(|((line, question), (label_line, label))| {
        let Piqa { goal, sol1, sol2 } = parse(questions, line, &question)?;
        let gold = match label.trim() {
            "0" => 0,
            "1" => 1,
            other => {
                let reason = format!("expected 0 or 1, got {other:?}");
                return Err(EvalError::Line { path: labels.into(), line: label_line, reason });
            }
        };
        Ok(Item { context: prompt(&goal), choices: vec![sol1, sol2], gold })
    })
    .collect()
}

pub(super) fn arc(path: &Path) -> Result<Vec<Item>, EvalError> {
    let item_of = |(line, text): (usize, String)| {
        let Arc { question, answer_key } = parse(path, line, &text)?;
        let gold = question.choices.iter().position(|choice| choice.label == answer_key).ok_or_else(|| {
            let reason = format!("the answer {answer_key:?} is not among the choices");
            EvalError::Line { path: path.into(), line, reason }
        })?;
        let choices = question.choices.into_iter().map(|choice| choice.text).collect();
        Ok(Item { context: prompt(&question.stem), choices, gold })
    };
    lines(path)?.into_iter().map(item_of).collect()
}

fn prompt(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// The lines that are not blank, with their numbers from one.
fn lines(path: &Path) -> Result<Vec<(usize, String)>, EvalError> {
    let text = std::fs::read_to_string(path).map_err(EvalError::io("read", path))?;
    let numbered = (1..).zip(text.lines().map(str::to_owned));
    Ok(numbered.filter(|(_, line)| !line.trim().is_empty()).collect())
}

fn parse<T: DeserializeOwned>(path: &Path, line: usize, text: &str) -> Result<T, EvalError> {
    let named = |error: serde_json::Error| EvalError::Line { path: path.into(), line, reason: error.to_string() };
    serde_json::from_str(text).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn the_last_word_of_each_line_is_asked_for() {
        let expected = Item { context: "he said to".into(), choices: vec!["claire".into()], gold: 0 };
        let (_folder, path) = file("l.txt", "he said to claire\n\n a b \n");
        assert_eq!(lambada(&path).unwrap()[0], expected);
        assert_eq!(lambada(&path).unwrap()[1].choices, ["b"]);
        let (_folder, path) = file("l.jsonl", "{\"text\": \"he said to claire\"}");
        assert_eq!(lambada(&path).unwrap(), [expected]);
        let (_folder, path) = file("l.txt", "two words\nword\n");
        assert!(lambada(&path).unwrap_err().to_string().ends_with("l.txt line 2: expected at least two words"));
    }

    #[test]
    fn goals_and_labels_are_read_together() {
        let (_q, questions) = file("q.jsonl", "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"id\": 1}\n");
        let (_l, labels) = file("l.lst", "1\n");
        let expected = Item { context: "Question: g\nAnswer:".into(), choices: vec!["a".into(), "b".into()], gold: 1 };
        assert_eq!(piqa(&questions, &labels).unwrap(), [expected]);
        let (_l, labels) = file("l.lst", "2\n");
        assert!(piqa(&questions, &labels).unwrap_err().to_string().ends_with("line 1: expected 0 or 1, got \"2\""));
        let (_l, labels) = file("l.lst", "1\n1\n");
        let error = piqa(&questions, &labels).unwrap_err().to_string();
        assert!(error.ends_with("expected 1 labels, one a question, got 2"), "{error}");
    }

    #[test]
    fn the_answer_is_found_by_its_label() {
        let line = |key: &str| {
            let choices = "[{\"text\": \"x\", \"label\": \"A\"}, {\"text\": \"y\", \"label\": \"B\"}]";
            format!(
                "{{\"id\": 1, \"question\": {{\"stem\": \"s?\", \"choices\": {choices}}}, \"answerKey\": \"{key}\"}}"
            )
        };
        let (_folder, path) = file("a.jsonl", &line("B"));
        let expected = Item { context: "Question: s?\nAnswer:".into(), choices: vec!["x".into(), "y".into()], gold: 1 };
        assert_eq!(arc(&path).unwrap(), [expected]);
        let (_folder, path) = file("a.jsonl", &line("C"));
        assert!(arc(&path).unwrap_err().to_string().contains("line 1: the answer \"C\" is not among the choices"));
        let (_folder, path) = file("a.jsonl", "{}");
        assert!(arc(&path).unwrap_err().to_string().contains("line 1: missing field"));
    }
}
