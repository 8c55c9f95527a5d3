//! Hostcalls of the proxy-wasm ABI 0.2.1: what Envoy refuses is as good as absent.
//!
//! The Rust SDK's forms of these unwrap UTF-8 and panic on a status that they did not expect, and here
//! a panic ends every request of the thread. So the ABI is spoken directly; headers are bytes.
//! Spec: <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>.

use core::{ptr::null_mut, time::Duration};

/// A map of headers.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Map {
    Request = 0,
    Response = 2,
    /// Of the answer to a call that this module made.
    Answer = 6,
}

#[derive(Clone, Copy)]
#[repr(u32)]
enum Buffer {
    /// The body of the answer to a call that this module made.
    Answer = 4,
    Configuration = 7,
}

/// Which half of a paused stream may go on.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Half {
    Request = 0,
    Response = 1,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum MetricKind {
    Counter = 0,
    Gauge = 1,
}

/// Envoy did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Refused;

/// What every call returns; anything else is a refusal.
const OK: u32 = 0;
const CRITICAL: u32 = 5;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, text: *const u8, size: usize) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_continue_stream(half: Half) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: Buffer,
        start: usize,
        most: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: Map, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_header_map_value(
        map: Map,
        name: *const u8,
        name_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: Map,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: Map, name: *const u8, name_size: usize) -> u32;
    fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_shared_data(
        name: *const u8,
        name_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        version: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
        version: u32,
    ) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout_ms: u32,
        token: *mut u32,
    ) -> u32;
    fn proxy_define_metric(kind: MetricKind, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, amount: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
}

// SAFETY of all calls below: Envoy reads what the pointers and sizes of a live slice name, and writes
// to the places it is given, all within the call.

/// What a call has Envoy write into memory of this module, if it did.
fn received(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Option<Vec<u8>> {
    let (mut data, mut size) = (null_mut(), 0);
    if call(&mut data, &mut size) != OK {
        return None;
    }
    // Envoy asks for no memory where there is nothing to write.
    if data.is_null() {
        return Some(Vec::new());
    }
    // SAFETY: Envoy had `allocate` make `data` with this very size, and gave it up.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// Memory for Envoy to write into, of which `received` becomes the owner. Null if there is none.
pub(crate) fn allocate(size: usize) -> *mut u8 {
    let mut memory = Vec::new();
    if memory.try_reserve_exact(size).is_err() {
        return null_mut();
    }
    std::mem::ManuallyDrop::new(memory).as_mut_ptr()
}

fn done(status: u32) -> Result<(), Refused> {
    if status == OK { Ok(()) } else { Err(Refused) }
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let mut now = 0;
    // A refusal leaves 0.
    unsafe { proxy_get_current_time_nanoseconds(&mut now) };
    now
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Logs what nobody must overlook.
pub(crate) fn log_critical(text: &str) {
    // There is nowhere to report a failed log line.
    unsafe { proxy_log(CRITICAL, text.as_ptr(), text.len()) };
}

/// Has this root context ticked from now on.
pub(crate) fn tick_every(period: Duration) -> Result<(), Refused> {
    done(unsafe { proxy_set_tick_period_milliseconds(period.as_millis() as u32) })
}

/// Has the following calls concern another context than the one that Envoy entered for.
pub(crate) fn act_for(context: u32) -> Result<(), Refused> {
    done(unsafe { proxy_set_effective_context(context) })
}

/// Lets a paused stream go on. One that has ended needs it no more.
pub(crate) fn resume(half: Half) {
    unsafe { proxy_continue_stream(half) };
}

pub(crate) fn header(map: Map, name: &str) -> Option<Vec<u8>> {
    received(|data, size| unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), data, size) })
}

pub(crate) fn set_header(map: Map, name: &str, value: &[u8]) {
    unsafe { proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) };
}

pub(crate) fn remove_header(map: Map, name: &str) {
    unsafe { proxy_remove_header_map_value(map, name.as_ptr(), name.len()) };
}

/// Every value of a header that may come several times, in order.
pub(crate) fn all_headers(map: Map, name: &str) -> Vec<Vec<u8>> {
    let pairs = received(|data, size| unsafe { proxy_get_header_map_pairs(map, data, size) });
    pairs.and_then(|pairs| values_of(&pairs, name.as_bytes())).unwrap_or_default()
}

/// The values of one name in a serialized map: the number of pairs, the lengths of each, then names
/// and values, each with a zero behind it. Numbers are 32 bits, little-endian.
fn values_of(pairs: &[u8], name: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (count, rest) = pairs.split_first_chunk::<4>()?;
    let (lengths, mut rest) = rest.split_at_checked((u32::from_le_bytes(*count) as usize).checked_mul(8)?)?;
    let mut values = Vec::new();
    for lengths in lengths.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *lengths;
        let (key, after) = rest.split_at_checked(u32::from_le_bytes([a, b, c, d]) as usize)?;
        let (value, after) = after.get(1..)?.split_at_checked(u32::from_le_bytes([e, f, g, h]) as usize)?;
        rest = after.get(1..)?;
        if key == name {
            values.push(value.to_vec());
        }
    }
    Some(values)
}

/// A map as `values_of` reads it.
fn serialize(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
    }
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend(text.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// Whoever is connected, `ip:port`, as Envoy sees it.
pub(crate) fn source_address() -> Option<Vec<u8>> {
    property(b"source\0address")
}

/// The request's cookies. Where a client sends several `cookie` headers they come joined by commas, as Odoo's
/// HTTP server joins them, and not the first alone as [`header`] gives it: both must read the same session.
pub(crate) fn cookies() -> Option<Vec<u8>> {
    property(b"request\0headers\0cookie")
}

/// An attribute of the request, by its path.
fn property(path: &[u8]) -> Option<Vec<u8>> {
    received(|data, size| unsafe { proxy_get_property(path.as_ptr(), path.len(), data, size) })
}

pub(crate) fn plugin_configuration() -> Vec<u8> {
    buffer(Buffer::Configuration).unwrap_or_default()
}

fn buffer(buffer: Buffer) -> Option<Vec<u8>> {
    received(|data, size| unsafe { proxy_get_buffer_bytes(buffer, 0, usize::MAX, data, size) })
}

/// A value that all VMs of this Envoy share, and the number with which to replace that very value.
pub(crate) fn shared(name: &str) -> (Option<Vec<u8>>, Option<u32>) {
    let mut version = 0;
    let value = received(|data, size| unsafe {
        proxy_get_shared_data(name.as_ptr(), name.len(), data, size, &mut version)
    });
    (value, Some(version).filter(|version| *version != 0))
}

/// Whether the value could be set: with `version`, only if nobody replaced it meanwhile.
pub(crate) fn set_shared(name: &str, value: &[u8], version: Option<u32>) -> bool {
    let (name, size) = (name.as_ptr(), name.len());
    let version = version.unwrap_or_default();
    done(unsafe { proxy_set_shared_data(name, size, value.as_ptr(), value.len(), version) }).is_ok()
}

/// Sends a request to a cluster; returns the token of its answer. Envoy makes it in the root context's
/// name, so it outlives a stream.
pub(crate) fn call(
    cluster: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> Result<u32, Refused> {
    let (headers, trailers) = (serialize(headers), serialize(&[]));
    let mut token = 0;
    let status = unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body.as_ptr(),
            body.len(),
            trailers.as_ptr(),
            trailers.len(),
            timeout.as_millis() as u32,
            &mut token,
        )
    };
    done(status).map(|()| token)
}

/// The body of the answer at hand, if its status is 200. `headers` is how many it has: none if there
/// was no answer, and then nothing may be read.
pub(crate) fn call_answer(headers: usize) -> Option<Vec<u8>> {
    if headers == 0 || header(Map::Answer, ":status")? != b"200" {
        return None;
    }
    buffer(Buffer::Answer)
}

/// The number of a metric, made if it is not there.
pub(crate) fn metric(kind: MetricKind, name: &str) -> Option<u32> {
    let mut id = 0;
    done(unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) }).ok().map(|()| id)
}

pub(crate) fn add_to_metric(id: u32, amount: i64) {
    // A lost count is no reason to disturb a request.
    unsafe { proxy_increment_metric(id, amount) };
}

pub(crate) fn set_metric(id: u32, value: u64) {
    unsafe { proxy_record_metric(id, value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_value_of_a_name() {
        let mut map = serialize(&[("a", "1"), ("set-cookie", "x"), ("?", ""), ("set-cookie", "y")]);
        assert_eq!(values_of(&map, b"set-cookie"), Some(vec![b"x".to_vec(), b"y".to_vec()]));
        assert_eq!(values_of(&map, b"b"), Some(vec![]));
        assert_eq!(values_of(&serialize(&[]), b"b"), Some(vec![]));
        let name = map.iter().position(|byte| *byte == b'?').unwrap();
        map[name] = 0xff;
        assert_eq!(values_of(&map, b"\xff"), Some(vec![vec![]]));
    }

    #[test]
    fn a_broken_map_has_none() {
        let map = serialize(&[("a", "1"), ("b", "2")]);
        for cut in 0..map.len() {
            assert_eq!(values_of(&map[..cut], b"a"), None, "{cut} bytes");
        }
        assert_eq!(values_of(&[0xff; 64], b"a"), None);
    }

    #[test]
    fn memory_for_envoy_is_owned_again() {
        for size in [0, 1, 100_000] {
            let data = allocate(size);
            assert!(!data.is_null());
            let received = received(|place, length| {
                // SAFETY: as Envoy does.
                unsafe {
                    data.write_bytes(7, size);
                    (*place, *length) = (data, size);
                }
                OK
            });
            assert_eq!(received, Some(vec![7; size]));
        }
        assert!(allocate(usize::MAX).is_null());
        assert_eq!(received(|_, _| OK), Some(vec![]));
        assert_eq!(received(|_, _| 1), None);
    }
}
