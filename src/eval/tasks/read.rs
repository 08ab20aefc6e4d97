//! Files of questions, told apart by what is in them: llama-perplexity's HellaSwag text (six lines each), its WinoGrande
//! table (CSV) and its binary multiple choice; and JSON lines as the data sets themselves are published.

use super::{Kind, Question, Task};
use crate::digest::sha256;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// As llama-perplexity has it.
const MOST_ANSWERS: usize = 100;

const FORMS: &str = "JSON lines with \"question\", \"choices\" and \"answer\" (or as HellaSwag, WinoGrande, ARC, MMLU and \
                     TruthfulQA are published), or the files of llama-perplexity: HellaSwag (6 lines a question), \
                     WinoGrande (CSV), multiple choice (binary)";

/// What is wrong with a question, in words.
type Fault<T> = std::result::Result<T, String>;

/// Reads a file of questions.
///
/// # Errors
/// `BadInput` for a file in no known form, and for a broken question, which is named; `Io`.
pub fn open(path: &Path) -> Result<Task> {
    parse(&crate::input::read(path)?)
        .map_err(|what| Error::bad_file(path, what).hint(format!("a file of questions is {FORMS}")))
}

fn parse(bytes: &[u8]) -> Fault<Task> {
    let (kind, questions) = if bytes.contains(&0) {
        (Kind::MultipleChoice, Binary { rest: bytes }.all()?)
    } else {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("is not UTF-8 text (byte {})", e.valid_up_to()))?;
        let lines: Vec<&str> = text.lines().collect();
        match lines.first().map(|line| line.trim_start()) {
            None => return Err("is empty".into()),
            Some(line) if line.starts_with('{') => json_lines(&lines)?,
            Some(_) if is_hellaswag(&lines) => (Kind::Hellaswag, hellaswag(&lines)?),
            Some(_) => (Kind::Winogrande, winogrande(&lines)?),
        }
    };
    match questions.is_empty() {
        true => Err("holds no questions".into()),
        false => Ok(Task { kind, questions, sha256: sha256(bytes) }),
    }
}

/// Answers that continue a text.
fn continued(context: &str, answers: &[String], right: Vec<bool>) -> Fault<Question> {
    if context.is_empty() || answers.iter().any(String::is_empty) {
        return Err("an empty question or answer".into());
    }
    if answers.len() < 2 || answers.len() > MOST_ANSWERS {
        return Err(format!("{} answers; there are 2 to {MOST_ANSWERS}", answers.len()));
    }
    if right.len() != answers.len() || !right.contains(&true) {
        return Err("none of its answers is the right one".into());
    }
    Ok(Question { texts: answers.iter().map(|a| format!("{context} {a}")).collect(), heads: Vec::new(), right })
}

/// Answers that fill a gap, which `_` marks; `right` counts from 1.
fn gap(sentence: &str, words: [&str; 2], right: &str) -> Fault<Question> {
    let (before, after) = sentence.split_once('_').ok_or("its sentence has no gap (_)")?;
    let right = match right.trim() {
        "1" => vec![true, false],
        "2" => vec![false, true],
        other => return Err(format!("the answer is 1 or 2, not '{other}'")),
    };
    let heads: Vec<String> = words.iter().map(|word| format!("{before}{word}")).collect();
    Ok(Question { texts: heads.iter().map(|head| format!("{head}{after}")).collect(), heads, right })
}

/// The one that is right, of so many.
fn only(right: usize, of: usize) -> Vec<bool> {
    (0..of).map(|i| i == right).collect()
}

/// A number alone in the second line is the right ending of six lines' question.
fn is_hellaswag(lines: &[&str]) -> bool {
    lines.get(1).is_some_and(|line| line.trim().parse::<u8>().is_ok())
}

fn hellaswag(lines: &[&str]) -> Fault<Vec<Question>> {
    let end = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
    let lines = &lines[..end];
    if !lines.len().is_multiple_of(6) {
        return Err(format!("has {} lines; HellaSwag has 6 a question: context, right ending, 4 endings", lines.len()));
    }
    let question = |(i, six): (usize, &[&str])| {
        let right = six[1].trim().parse::<usize>().ok().filter(|r| *r < 4);
        let right = right.ok_or_else(|| format!("line {}: the right ending is 0 to 3, not '{}'", 6 * i + 2, six[1]))?;
        let endings: Vec<String> = six[2..].iter().map(|e| e.to_string()).collect();
        continued(six[0], &endings, only(right, 4)).map_err(|e| format!("line {}: {e}", 6 * i + 1))
    };
    lines.chunks_exact(6).enumerate().map(question).collect()
}

/// Index, sentence, two words, answer. Broken lines are errors, not left out.
fn winogrande(lines: &[&str]) -> Fault<Vec<Question>> {
    let mut questions = Vec::new();
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let cells = cells(line);
        let [_, sentence, one, two, answer] = cells.as_slice() else {
            return Err(match i {
                0 => "is not in a known format".into(),
                _ => format!("line {}: {} cells; WinoGrande has 5", i + 1, cells.len()),
            });
        };
        // A header.
        if i == 0 && !sentence.contains('_') {
            continue;
        }
        questions.push(gap(sentence, [one, two], answer).map_err(|e| format!("line {}: {e}", i + 1))?);
    }
    Ok(questions)
}

/// The cells of a line of CSV (RFC 4180).
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        let cell = cells.last_mut();
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => cell.into_iter().for_each(|c| c.push('"')),
            '"' if quoted || cell.as_ref().is_some_and(|c| c.is_empty()) => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            other => cell.into_iter().for_each(|c| c.push(other)),
        }
    }
    cells
}

/// llama-perplexity's binary form: the number of questions and the place of each, then a question as a string, its
/// answers with one right, and answers with several right, which are not used. All little-endian.
struct Binary<'a> {
    rest: &'a [u8],
}

impl Binary<'_> {
    fn all(mut self) -> Fault<Vec<Question>> {
        let count = self.number()? as usize;
        let places = count.checked_mul(4).filter(|n| *n <= self.rest.len());
        let places =
            places.ok_or_else(|| format!("is not in a known format ({count} questions do not fit into it)"))?;
        self.rest = &self.rest[places..];
        let question = |i| self.question().map_err(|e| format!("question {}: {e}", i + 1));
        (0..count).map(question).collect()
    }

    fn question(&mut self) -> Fault<Question> {
        let question = self.text()?;
        let (answers, right) = self.answers()?;
        self.answers()?;
        continued(&question, &answers, right)
    }

    fn answers(&mut self) -> Fault<(Vec<String>, Vec<bool>)> {
        let count = self.number()? as usize;
        if count > MOST_ANSWERS {
            return Err(format!("{count} answers; there are at most {MOST_ANSWERS}"));
        }
        let answers = (0..count).map(|_| self.text()).collect::<Fault<_>>()?;
        let right = (0..count).map(|_| Ok(self.number()? == 1)).collect::<Fault<_>>()?;
        Ok((answers, right))
    }

    fn number(&mut self) -> Fault<u32> {
        let (number, rest) = self.rest.split_first_chunk().ok_or("ends too early")?;
        self.rest = rest;
        Ok(u32::from_le_bytes(*number))
    }

    fn text(&mut self) -> Fault<String> {
        let len = self.number()? as usize;
        let (text, rest) = self.rest.split_at_checked(len).ok_or("ends too early")?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| "a text is not UTF-8".into())
    }
}

/// One question a line; all of them of one kind.
fn json_lines(lines: &[&str]) -> Fault<(Kind, Vec<Question>)> {
    let (mut kind, mut questions) = (None, Vec::new());
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let of = |what: String| format!("line {}: {what}", i + 1);
        let value: Value = serde_json::from_str(line).map_err(|e| of(format!("is not JSON: {e}")))?;
        let (this, question) = object(&value).map_err(of)?;
        if *kind.get_or_insert(this) != this {
            return Err(of("is another kind of question than those before".into()));
        }
        questions.push(question);
    }
    Ok((kind.unwrap_or(Kind::MultipleChoice), questions))
}

fn object(value: &Value) -> Fault<(Kind, Question)> {
    let text = |key: &str| value[key].as_str();
    if let (Some(sentence), Some(one), Some(two)) = (text("sentence"), text("option1"), text("option2")) {
        let answer = value["answer"].as_str().map_or_else(|| value["answer"].to_string(), String::from);
        return Ok((Kind::Winogrande, gap(sentence, [one, two], &answer)?));
    }
    if let (Some(ctx), Value::Array(endings)) = (text("ctx"), &value["endings"]) {
        // As EleutherAI's harness prepares it.
        let context = match text("activity_label") {
            Some(label) => tidy(&format!("{label}: {ctx}")),
            None => tidy(ctx),
        };
        let endings: Vec<String> = texts(endings)?.iter().map(|e| tidy(e)).collect();
        let right = place(&value["label"], &[], endings.len())?;
        let kind = if endings.len() == 4 { Kind::Hellaswag } else { Kind::MultipleChoice };
        return Ok((kind, continued(&context, &endings, only(right, endings.len()))?));
    }
    let question = ["question", "context", "prompt", "query"].iter().find_map(|key| text(key));
    let question = question.ok_or("has neither \"question\" nor \"context\" nor \"sentence\"")?;
    let with_labels = [&value["mc1_targets"], value].into_iter().find(|v| v["labels"].is_array());
    if let Some(targets) = with_labels {
        let answers = texts(targets["choices"].as_array().ok_or("has no \"choices\"")?)?;
        let right = targets["labels"].as_array().into_iter().flatten().map(|l| l.as_u64() == Some(1)).collect();
        return Ok((Kind::MultipleChoice, continued(question, &answers, right)?));
    }
    let choices = ["choices", "options", "answers", "endings"].iter().map(|key| &value[*key]).find(|v| !v.is_null());
    let choices = choices.ok_or("has no \"choices\"")?;
    let (answers, names) = match choices {
        Value::Array(answers) => (texts(answers)?, Vec::new()),
        // ARC: texts and their letters apart.
        _ => match (choices["text"].as_array(), choices["label"].as_array()) {
            (Some(answers), Some(names)) => (texts(answers)?, texts(names)?),
            _ => return Err("\"choices\" is not a list".into()),
        },
    };
    let right = ["answer", "answerKey", "label", "gold"].iter().map(|key| &value[*key]).find(|v| !v.is_null());
    let right = place(right.ok_or("has no \"answer\"")?, &names, answers.len())?;
    Ok((Kind::MultipleChoice, continued(question, &answers, only(right, answers.len()))?))
}

fn texts(values: &[Value]) -> Fault<Vec<String>> {
    let text = |v: &Value| v.as_str().map(String::from).ok_or_else(|| format!("{v} is not text"));
    values.iter().map(text).collect()
}

/// Which answer is meant: by number from 0, by its name, or by a letter.
fn place(right: &Value, names: &[String], count: usize) -> Fault<usize> {
    let word = right.as_str().map_or_else(|| right.to_string(), |s| s.trim().to_string());
    let named = names.iter().position(|name| *name == word);
    let letter = || match word.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
        _ => None,
    };
    let found = named.or_else(|| word.parse().ok().filter(|_| names.is_empty())).or_else(letter);
    found.filter(|place| *place < count).ok_or_else(|| format!("the right answer, {right}, is not one of its {count}"))
}

/// HellaSwag's texts without the marks of the site that they are from.
fn tidy(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let Some(close) = rest[open..].find(']') else { break };
        out += &rest[..open];
        rest = &rest[open + close + 1..];
    }
    out += rest;
    out.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(text: &str) -> (Kind, Question) {
        let task = parse(text.as_bytes()).unwrap();
        (task.kind, task.questions[0].clone())
    }

    #[test]
    fn every_form_gives_its_texts() {
        let (kind, q) = first("Baking: She opens the oven.\n2\nand a\nand b\nand c\nand d\n");
        assert_eq!((kind, q.right), (Kind::Hellaswag, vec![false, false, true, false]));
        assert_eq!(q.texts[3], "Baking: She opens the oven. and d");
        let json = r#"{"activity_label":"Baking","ctx":"She [substeps] opens [title] the oven.","endings":["and a","and b","and c","and d"],"label":"2"}"#;
        assert_eq!(first(json).1.texts[0], "Baking: She opens. the oven. and a");

        let (kind, q) = first("0,\"Sarah, not Maria, cut better, so _ got the \"\"easy\"\" cases.\",Sarah,Maria,2\n");
        assert_eq!((kind, q.right), (Kind::Winogrande, vec![false, true]));
        assert_eq!(q.texts[0], "Sarah, not Maria, cut better, so Sarah got the \"easy\" cases.");
        assert_eq!(q.heads[1], "Sarah, not Maria, cut better, so Maria");
        let json = r#"{"sentence":"so _ got it","option1":"A","option2":"B","answer":"1"}"#;
        assert_eq!(first(json).1.texts[1], "so B got it");

        for line in [
            r#"{"question":"Is it?","choices":["no","yes","or"],"answer":1}"#,
            r#"{"question":"Is it?","choices":["no","yes","or"],"answer":"B"}"#,
            r#"{"question":"Is it?","choices":{"text":["no","yes","or"],"label":["1","2","3"]},"answerKey":"2"}"#,
            r#"{"question":"Is it?","mc1_targets":{"choices":["no","yes","or"],"labels":[0,1,0]}}"#,
        ] {
            let (kind, q) = first(line);
            assert_eq!((kind, q.right), (Kind::MultipleChoice, vec![false, true, false]), "{line}");
            assert_eq!(q.texts[1], "Is it? yes");
        }

        let text = |t: &str| [&(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
        let mut binary = [1u32.to_le_bytes(), 8u32.to_le_bytes()].concat();
        binary.extend([text("Is it?"), vec![2, 0, 0, 0], text("no"), text("yes")].concat());
        binary.extend([0u32.to_le_bytes(), 1u32.to_le_bytes(), 0u32.to_le_bytes()].concat());
        let task = parse(&binary).unwrap();
        assert_eq!(task.questions[0].texts, ["Is it? no", "Is it? yes"]);
        assert_eq!(task.questions[0].right, [false, true]);
        for cut in 0..binary.len() {
            assert!(parse(&binary[..cut]).is_err());
        }
    }

    #[test]
    fn broken_questions_are_named() {
        for (text, part) in [
            ("", "is empty"),
            ("a story about a cat", "not in a known format"),
            ("a\n4\nb\nc\nd\ne\n", "line 2"),
            ("a\n1\nb\nc\nd\n", "6 a question"),
            ("0,no gap_,a,b,1\n1,none,a,b,1\n", "line 2: its sentence has no gap"),
            ("0,so _ it,a,b,3\n", "the answer is 1 or 2"),
            (r#"{"question":"q","choices":["a"],"answer":0}"#, "1 answers"),
            (r#"{"question":"q","choices":["a","b"],"answer":2}"#, "is not one of its 2"),
            (r#"{"question":"q","choices":["a",""],"answer":0}"#, "empty"),
            ("{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":0}\n{", "line 2: is not JSON"),
        ] {
            let said = parse(text.as_bytes()).unwrap_err();
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}
