//! What Envoy finds when it loads the module.

use wasm_host::Filter;

/// Without these Envoy could not start the filter or use it.
const NEEDED: [&str; 12] = [
    "memory",
    "_initialize",
    "proxy_abi_version_0_2_1",
    "proxy_on_memory_allocate",
    "proxy_on_context_create",
    "proxy_on_vm_start",
    "proxy_on_configure",
    "proxy_on_tick",
    "proxy_on_request_headers",
    "proxy_on_response_headers",
    "proxy_on_http_call_response",
    "proxy_on_delete",
];

/// The WASI functions that the filter may pull in: Envoy has them, and none opens anything.
const WASI: [&str; 6] =
    ["clock_time_get", "environ_get", "environ_sizes_get", "fd_write", "proc_exit", "random_get"];

/// Anything larger would mean that a dependency slipped in.
const LARGEST: u64 = 210_000;

#[test]
fn exports_what_envoy_calls() {
    let exports = Filter::load().unwrap().exports();
    for name in NEEDED {
        assert!(exports.iter().any(|export| export == name), "{name} is missing");
    }
    let versions: Vec<_> = exports.iter().filter(|name| name.starts_with("proxy_abi_version")).collect();
    assert_eq!(versions, ["proxy_abi_version_0_2_1"], "Envoy wants exactly one");
}

#[test]
fn imports_nothing_but_the_abi() {
    for import in Filter::load().unwrap().imports() {
        let is_wasi = WASI.iter().any(|name| import.strip_prefix("wasi_snapshot_preview1.") == Some(name));
        assert!(import.starts_with("env.proxy_") || is_wasi, "{import}");
    }
}

/// Without these Envoy does not enter the module for every piece of a body and every websocket frame.
#[test]
fn exports_nothing_that_costs_time() {
    let unwanted = ["body", "trailers", "data", "proxy_on_log", "proxy_on_done"];
    for export in Filter::load().unwrap().exports() {
        // One that was built by hand still has them all.
        assert!(!Filter::is_finished() || !unwanted.iter().any(|name| export.contains(name)), "{export}");
    }
}

#[test]
fn is_small() {
    let size = Filter::load().unwrap().size;
    // One that was built by hand has not been through wasm-opt.
    assert!(!Filter::is_finished() || size < LARGEST, "{size} bytes");
}
