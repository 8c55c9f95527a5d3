//! Hostcalls that cannot panic: what Envoy refuses is as good as absent.
//!
//! Only the `*_bytes` forms are used. The others unwrap UTF-8, and one byte of a header could then
//! end the VM for everybody.

use std::time::Duration;

use proxy_wasm::{
    hostcalls,
    types::{BufferType, LogLevel, MapType, Status},
};

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let now = hostcalls::get_current_time().ok();
    let since = now.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

pub(crate) fn log(level: LogLevel, message: &str) {
    // There is nowhere to report a failed log line.
    let _ = hostcalls::log(level, message);
}

pub(crate) fn header(map: MapType, name: &str) -> Option<Vec<u8>> {
    hostcalls::get_map_value_bytes(map, name).ok().flatten()
}

pub(crate) fn set_header(map: MapType, name: &str, value: &[u8]) {
    let _ = hostcalls::set_map_value_bytes(map, name, Some(value));
}

pub(crate) fn remove_header(map: MapType, name: &str) {
    let _ = hostcalls::remove_map_value(map, name);
}

/// Every value of a header that may come several times.
pub(crate) fn all_headers(map: MapType, name: &str) -> Vec<Vec<u8>> {
    let headers = hostcalls::get_map_bytes(map).unwrap_or_default();
    headers.into_iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
}

/// Whoever is connected, `ip:port`, as Envoy sees it.
pub(crate) fn source_address() -> Option<Vec<u8>> {
    hostcalls::get_property(vec!["source", "address"]).ok().flatten()
}

pub(crate) fn plugin_configuration() -> Vec<u8> {
    hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX).ok().flatten().unwrap_or_default()
}

/// A value that all VMs of this Envoy share, and the number with which to replace that very value.
pub(crate) fn shared(name: &str) -> (Option<Vec<u8>>, Option<u32>) {
    hostcalls::get_shared_data(name).unwrap_or_default()
}

/// Whether the value could be set: with `cas`, only if nobody replaced it meanwhile.
pub(crate) fn set_shared(name: &str, value: &[u8], cas: Option<u32>) -> bool {
    hostcalls::set_shared_data(name, Some(value), cas).is_ok()
}

/// Sends a request to a cluster in the name of the root context `root`, so that its answer is
/// delivered, and the SDK's note of it removed, even if the stream `context` has ended by then.
pub(crate) fn call(
    root: u32,
    context: u32,
    cluster: &str,
    headers: Vec<(&str, &str)>,
    body: Option<&[u8]>,
    timeout: Duration,
) -> Result<u32, Status> {
    hostcalls::set_effective_context(root)?;
    let token = hostcalls::dispatch_http_call(cluster, headers, body, vec![], timeout);
    hostcalls::set_effective_context(context)?;
    token
}

/// The body of the answer at hand, if its status is 200. `root` is who asked, `context` who wants to
/// know.
pub(crate) fn call_answer(root: u32, context: u32) -> Option<Vec<u8>> {
    hostcalls::set_effective_context(root).ok()?;
    let status = header(MapType::HttpCallResponseHeaders, ":status");
    let body = hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, usize::MAX).ok().flatten();
    hostcalls::set_effective_context(context).ok()?;
    body.filter(|_| status.as_deref() == Some(b"200"))
}
