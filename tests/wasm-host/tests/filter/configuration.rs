//! What an operator may write, and what they are told when it is wrong.

use core::time::Duration;

use wasm_host::{Host, LogLevel, Refused};

use crate::support::{NODES_ONLY, only_call, sid, visit, with_sidecar};

/// What the filter logs when it refuses a configuration.
fn refusal(configuration: &[u8]) -> String {
    let error = Host::new().unwrap().vm(configuration).err().expect("a refusal");
    let refused: Refused = error.downcast().expect("no other error");
    let [line] = &refused.logs[..] else { panic!("one line, not {:?}", refused.logs) };
    assert_eq!(line.level, LogLevel::Critical);
    line.message.clone()
}

#[test]
fn accepts_nodes_a_sidecar_or_both() {
    let host = Host::new().unwrap();
    for configuration in [NODES_ONLY, r#"{"sidecar_cluster": "mooring"}"#, &with_sidecar()] {
        let vm = host.vm(configuration).unwrap();
        assert!(vm.logs().is_empty(), "{:?}", vm.logs());
        assert_eq!(vm.tick_period(), Some(Duration::from_millis(100)));
    }
}

#[test]
fn refuses_with_the_path_of_the_field() {
    for (configuration, part) in [
        ("", "found nothing"),
        ("{", "line 1, column 2"),
        ("[]", "expected a JSON object"),
        ("{}", "nodes: empty"),
        (r#"{"sidecar_cluster": "x", "colour": 1}"#, "colour: unknown field"),
        (r#"{"sidecar_cluster": "x", "sidecar_timeout_ms": 0}"#, "sidecar_timeout_ms: "),
        (r#"{"nodes": [{"id": "a", "http": "localhost:1"}]}"#, "nodes[0].http: "),
        (r#"{"sidecar_cluster": "x", "sidecar_token_env": "MOORING_TOKEN"}"#, "sidecar_token_env: "),
        (
            r#"{"nodes": [{"id": "a", "http": "127.0.0.1:1"}, {"id": "b", "http": "127.0.0.1:2", "weight": 0}]}"#,
            "nodes[1].weight: ",
        ),
        (
            r#"{"nodes": [{"id": "a", "http": "127.0.0.1:1"}, {"id": "b", "http": "127.0.0.1:1"}]}"#,
            "nodes: nodes a and b have the same address",
        ),
    ] {
        let message = refusal(configuration.as_bytes());
        assert!(message.contains(part), "{configuration}: {message:?} lacks {part:?}");
    }
}

#[test]
fn refuses_rubbish_without_a_trap() {
    assert!(refusal(&[0xff; 100]).contains("no UTF-8"));
    assert!(refusal("[".repeat(100_000).as_bytes()).contains("within each other"));
    assert!(refusal(&b"\0".repeat(1_000_000)).contains("no JSON"));
    let many: Vec<_> =
        (0..300).map(|n| format!(r#"{{"id": "n{n}", "http": "10.0.{}.{}:80"}}"#, n / 250, n % 250)).collect();
    assert!(refusal(format!(r#"{{"nodes": [{}]}}"#, many.join(",")).as_bytes()).contains("300 nodes"));
}

#[test]
fn a_token_may_come_from_the_environment() {
    let host = Host::new().unwrap();
    host.set_variable("LANG", "C.UTF-8");
    host.set_variable("MOORING_TOKEN", "0123456789abcdef=é\n");
    host.set_variable("OTHER_TOKEN", "0123456789abcdef=\n");
    let with = |name: &str| with_sidecar().replacen('{', &format!(r#"{{"sidecar_token_env": "{name}","#), 1);
    let refused = host.vm(with("MOORING_TOKEN")).err().expect("é is no part of a token").to_string();
    assert!(refused.contains("sidecar_token_env: ") && !refused.contains("0123"), "{refused}");

    let vm = host.vm(with("OTHER_TOKEN")).unwrap();
    let stream = visit(&vm, &sid(1));
    let call = only_call(&vm, "/v1/owners/");
    assert_eq!(call.headers.get("authorization"), Some(&b"Bearer 0123456789abcdef="[..]));
    drop(stream);
}
