//! Hostcalls: what Envoy refuses is as good as absent.
//!
//! Only the SDK's `*_bytes` forms are used, and not its `get_map`: the others unwrap UTF-8, and one
//! byte of a header could then end the VM for everybody. The SDK also panics on statuses that a call
//! cannot have where it is made here.

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

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map: MapType, data: *mut *mut u8, size: *mut usize) -> Status;
}

/// Every value of a header that may come several times, in order.
pub(crate) fn all_headers(map: MapType, name: &str) -> Vec<Vec<u8>> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: as the ABI has it, the host writes both places, and `data` is memory that it had this
    // module allocate with this very size, and gave up.
    let pairs = unsafe {
        match proxy_get_header_map_pairs(map, &mut data, &mut size) {
            Status::Ok if !data.is_null() => Vec::from_raw_parts(data, size, size),
            _ => return Vec::new(),
        }
    };
    values_of(&pairs, name.as_bytes()).unwrap_or_default()
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

/// Sends a request to a cluster. Envoy makes it in the root context's name, so it outlives a stream.
pub(crate) fn call(
    cluster: &str,
    headers: Vec<(&str, &str)>,
    body: Option<&[u8]>,
    timeout: Duration,
) -> Result<u32, Status> {
    hostcalls::dispatch_http_call(cluster, headers, body, vec![], timeout)
}

/// The body of the answer at hand, if its status is 200. `headers` is how many it has: none if there
/// was no answer, and then nothing may be read.
pub(crate) fn call_answer(headers: usize) -> Option<Vec<u8>> {
    if headers == 0 || header(MapType::HttpCallResponseHeaders, ":status")? != b"200" {
        return None;
    }
    hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, usize::MAX).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serialized(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = (pairs.len() as u32).to_le_bytes().to_vec();
        for (name, value) in pairs {
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend((value.len() as u32).to_le_bytes());
        }
        for (name, value) in pairs {
            bytes.extend([name, &b"\0"[..], value, b"\0"].concat());
        }
        bytes
    }

    #[test]
    fn finds_every_value_of_a_name() {
        let map = serialized(&[(b"a", b"1"), (b"set-cookie", b"x"), (b"\xff", b""), (b"set-cookie", b"y")]);
        assert_eq!(values_of(&map, b"set-cookie"), Some(vec![b"x".to_vec(), b"y".to_vec()]));
        assert_eq!(values_of(&map, b"b"), Some(vec![]));
        assert_eq!(values_of(&serialized(&[]), b"b"), Some(vec![]));
    }

    #[test]
    fn a_broken_map_has_none() {
        let map = serialized(&[(b"a", b"1"), (b"b", b"2")]);
        for cut in 0..map.len() {
            assert_eq!(values_of(&map[..cut], b"a"), None, "{cut} bytes");
        }
        assert_eq!(values_of(&[0xff; 64], b"a"), None);
    }
}
