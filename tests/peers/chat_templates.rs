//! Chat templates against what Jinja2 makes of them (`tests/interop/render_chat.py` writes the expected texts).
//! `QUANTIZE_TEMPLATE_DIR` names a further folder of templates that the script has been run on.

use crate::common::repo;
use quantize::model::tokenizer::{Message, render_chat};
use serde_json::Value;
use std::path::Path;

/// Cases that come out differently, with a line for each.
fn differences(dir: &Path) -> (usize, Vec<String>) {
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    let cases = cases.as_array().unwrap();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = std::fs::read_to_string(dir.join(name)).unwrap();
        let field = |m: &Value, key: &str| m[key].as_str().unwrap().to_string();
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(field(m, "role"), field(m, "content")))
            .collect();
        let got = render_chat(&template, &messages, "<s>", "</s>", case["add_generation_prompt"] == true);
        let same = match (&got, case["text"].as_str(), case["error"].as_str()) {
            (Ok(got), Some(expected), _) => got == expected,
            (Err(got), _, Some(_)) => got.exit_code() == 3,
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{name}: {}\n  got {got:?}\n  expected {} {}",
                case["messages"], case["text"], case["error"]
            ));
        }
    }
    (cases.len(), wrong)
}

#[test]
fn templates_render_as_in_python() {
    let dir = repo("tests/fixtures/chat");
    let (count, wrong) = differences(&dir);
    assert_eq!(count, 60);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn more_templates() {
    let Some(dir) = std::env::var_os("QUANTIZE_TEMPLATE_DIR") else {
        println!("skipped: QUANTIZE_TEMPLATE_DIR is not set");
        return;
    };
    let (count, mut wrong) = differences(Path::new(&dir));
    // Templates for tools fail in Python when there are none; here a loop over nothing is empty.
    wrong.retain(|w| !w.contains("'NoneType' object is not iterable"));
    println!("{} of {count} cases differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(wrong.is_empty());
}

#[test]
fn a_template_may_refuse_but_not_run_on() {
    let user = [Message::new("user", "x")];
    let refused = render_chat("{{ raise_exception('only system') }}", &user, "", "", false).unwrap_err();
    assert!(refused.to_string().contains("only system"), "{refused}");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert_eq!(render_chat(endless, &user, "", "", false).unwrap_err().exit_code(), 3);
    assert!(render_chat("{% if %}", &user, "", "", false).is_err());
}
