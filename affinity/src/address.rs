//! The client's address behind a known number of proxies.

use core::net::{IpAddr, SocketAddr};

/// The address in `peer`, whom Envoy takes for the client (`192.0.2.7:40312`,
/// `[2001:db8::7]:40312`); none for a Unix socket.
pub fn peer_address(peer: &[u8]) -> Option<IpAddr> {
    parse(peer)
}

/// The address of the client, believing `trusted_proxies` proxies in front of Envoy.
///
/// `forwarded_for` is the value of X-Forwarded-For in a filter of an Envoy with
/// `use_remote_address: true`: each proxy appended whom it saw, Envoy itself the last entry. After
/// `trusted_proxies` further steps to the left comes the client. What is further left is the client's
/// own word and never looked at.
///
/// An entry that is no address ends the walk: the nearest address before it counts. `None` if even
/// the last entry is none.
pub fn client_address(forwarded_for: &[u8], trusted_proxies: u8) -> Option<IpAddr> {
    let hops = forwarded_for.rsplit(|&byte| byte == b',').map(parse);
    hops.take(usize::from(trusted_proxies) + 1).map_while(|hop| hop).last()
}

/// One address, with or without a port, brackets and quotes, as proxies write them.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    // The longest form is `"[…]:65535"` around 45 characters; no need to look at more.
    let text = core::str::from_utf8(entry.get(..64).unwrap_or(entry)).ok()?;
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(forwarded_for: &str, trusted: u8) -> Option<String> {
        client_address(forwarded_for.as_bytes(), trusted).map(|ip| ip.to_string())
    }

    #[test]
    fn believes_as_many_proxies_as_told() {
        let chain = "203.0.113.9, 198.51.100.2, 10.0.0.2, 10.0.0.1";
        for (trusted, expected) in
            [(0, "10.0.0.1"), (1, "10.0.0.2"), (2, "198.51.100.2"), (3, "203.0.113.9"), (9, "203.0.113.9")]
        {
            assert_eq!(client(chain, trusted).as_deref(), Some(expected), "{trusted} trusted");
        }
    }

    #[test]
    fn stops_at_what_is_no_address() {
        assert_eq!(client("203.0.113.9, unknown, 10.0.0.2, 10.0.0.1", 3).as_deref(), Some("10.0.0.2"));
        assert_eq!(client("nonsense, 10.0.0.1", 1).as_deref(), Some("10.0.0.1"));
        assert_eq!(client("", 2), None);
        assert_eq!(client("10.0.0.2, nonsense", 2), None);
    }

    #[test]
    fn reads_the_forms_in_use() {
        for (entry, expected) in [
            ("203.0.113.9:1234", "203.0.113.9"),
            ("[2001:db8::1]:1234", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("\"[2001:db8::1]:99\"", "2001:db8::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
        ] {
            assert_eq!(client(entry, 0).as_deref(), Some(expected), "{entry}");
            assert_eq!(peer_address(entry.as_bytes()).map(|ip| ip.to_string()).as_deref(), Some(expected));
        }
        assert_eq!(peer_address(b"/run/envoy.sock"), None);
    }

    #[test]
    fn survives_hostile_input() {
        assert_eq!(
            client(&format!("{}10.0.0.1", "1.2.3.4,".repeat(20_000)), 255).as_deref(),
            Some("1.2.3.4")
        );
        assert_eq!(client_address(&[0xff; 9_000], 4), None);
        assert_eq!(client_address(b"\xff, 203.0.113.9", 1), "203.0.113.9".parse().ok());
    }
}
