//! The JSON reader against serde_json: what the one takes the other takes, with the same value.
#![allow(clippy::panic)]

use mooring::json::Json;
use proptest::prelude::*;
use serde_json::Value;

fn same(ours: &Json, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Json::Null, Value::Null) => true,
        (Json::Bool(ours), Value::Bool(theirs)) => ours == theirs,
        (Json::Whole(ours), theirs) => theirs.as_u64() == Some(*ours),
        (Json::Number(ours), Value::Number(theirs)) => ours.parse::<f64>().ok() == theirs.as_f64(),
        (Json::Text(ours), Value::String(theirs)) => ours == theirs,
        (Json::List(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs))
        }
        (Json::Object(ours), Value::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().all(|(name, ours)| theirs.get(name).is_some_and(|theirs| same(ours, theirs)))
        }
        _ => false,
    }
}

fn compare(text: &str) {
    match (text.parse::<Json>(), serde_json::from_str::<Value>(text)) {
        (Ok(ours), Ok(theirs)) => assert!(same(&ours, &theirs), "{text:?}: {ours:?} is not {theirs:?}"),
        (Err(_), Err(_)) => {}
        // serde_json takes the last of two fields with one name, reads deeper, and has no numbers
        // beyond a double's range.
        (Err(ours), Ok(_)) => assert!(
            ours.problem.contains("already given") || ours.problem.contains("within each other"),
            "{text:?}: {ours}"
        ),
        (Ok(_), Err(theirs)) => assert!(theirs.to_string().contains("out of range"), "{text:?}: {theirs}"),
    }
}

#[test]
fn takes_and_refuses_what_serde_json_does() {
    for text in [
        "",
        " ",
        "null",
        " true ",
        "false",
        "nul",
        "truex",
        "0",
        "-0",
        "01",
        "1.",
        ".5",
        "1.5",
        "-",
        "--1",
        "1e5",
        "1E+5",
        "1e",
        "1e+",
        "18446744073709551615",
        "18446744073709551616",
        "-1",
        "+1",
        "1e400",
        "\"\"",
        "\"a",
        "\"\\u00e9\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ud83d\\u0041\"",
        "\"\\udc00\"",
        "\"\\u00g0\"",
        "\"\\u+123\"",
        "\"\\x\"",
        "\"\\",
        "\"\n\"",
        "\"\\/\\b\\f\\n\\r\\t\\\\\\\"\"",
        "[]",
        "[1]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1,2",
        "[",
        "]",
        "{}",
        "{\"a\":1}",
        "{\"a\":1,}",
        "{\"a\"}",
        "{\"a\" 1}",
        "{a:1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":{\"b\":[{}]}}",
        "{\"a\":1,\"a\":2}",
        "[1] [2]",
        "\u{feff}1",
        "\u{a0}1",
        "\"\u{7f}é😀\"",
        "\0",
        "1\0",
    ] {
        compare(text);
    }
    compare(&"[".repeat(100_000));
    compare(&format!("{}{}", "[".repeat(15), "]".repeat(15)));
}

#[test]
fn says_where_and_what() {
    let error = |text: &str| text.parse::<Json>().err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(error("{\n  \"é\": 1\n  \"b\": 2\n}"), "line 3, column 3: expected , or }");
    assert_eq!(error("{\"a\": 1, \"a\": 2}"), "line 1, column 10: this field is already given above");
    assert_eq!(error(&"[".repeat(99)), "line 1, column 17: too many lists and objects within each other");
}

fn json_like() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(","),
        Just(":"),
        Just("\""),
        Just("\"a\""),
        Just("\"b\""),
        Just("1"),
        Just("-2.5e3"),
        Just("null"),
        Just("true"),
        Just(" "),
        Just("\\u0041"),
        Just("\\"),
        Just("é"),
        Just("\n"),
        Just("0"),
    ];
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn tokens_in_any_order(text in json_like()) {
        compare(&text);
    }

    #[test]
    fn any_text(text in any::<String>()) {
        compare(&text);
    }
}
