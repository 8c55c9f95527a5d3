//! The client's address behind a known number of proxies.

use core::net::{IpAddr, SocketAddr};

/// The address of the client, believing `trusted_proxies` proxies in front of Envoy.
///
/// `peer` is whoever connected, as Envoy prints it (`192.0.2.7:40312`, `[2001:db8::7]:40312`);
/// `forwarded_for` is the value of X-Forwarded-For, to which each proxy appended whom it saw. Read
/// from the right, the peer is the first proxy, and after `trusted_proxies` steps comes the client.
/// Anything further left is the client's own word and never looked at. Where Envoy appended the peer
/// to the header itself (`use_remote_address: true`), it counts once.
///
/// An entry that is no address ends the walk: the nearest address before it counts. `None` only if
/// the peer itself is unreadable (a Unix socket) and no trusted entry helps.
pub fn client_address(forwarded_for: &[u8], peer: &[u8], trusted_proxies: u8) -> Option<IpAddr> {
    let peer = parse(peer);
    if trusted_proxies == 0 {
        return peer;
    }
    let mut hops = forwarded_for.rsplit(|&byte| byte == b',').map(parse).peekable();
    hops.next_if(|nearest| nearest.is_some() && *nearest == peer);
    hops.take(trusted_proxies.into()).map_while(|hop| hop).last().or(peer)
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

    fn client(forwarded_for: &str, peer: &str, trusted: u8) -> Option<String> {
        client_address(forwarded_for.as_bytes(), peer.as_bytes(), trusted).map(|ip| ip.to_string())
    }

    #[test]
    fn believes_as_many_proxies_as_told() {
        let peer = "10.0.0.1:4000";
        let chain = "203.0.113.9, 198.51.100.2, 10.0.0.2";
        for (trusted, expected) in
            [(0, "10.0.0.1"), (1, "10.0.0.2"), (2, "198.51.100.2"), (3, "203.0.113.9"), (9, "203.0.113.9")]
        {
            assert_eq!(client(chain, peer, trusted).as_deref(), Some(expected), "{trusted} trusted");
        }
    }

    #[test]
    fn counts_a_peer_that_envoy_appended_once() {
        assert_eq!(client("203.0.113.9, 10.0.0.1", "10.0.0.1:4000", 1).as_deref(), Some("203.0.113.9"));
        assert_eq!(client("203.0.113.9", "10.0.0.1:4000", 1).as_deref(), Some("203.0.113.9"));
    }

    #[test]
    fn stops_at_what_is_no_address() {
        let peer = "10.0.0.1:4000";
        assert_eq!(client("203.0.113.9, unknown, 10.0.0.2", peer, 3).as_deref(), Some("10.0.0.2"));
        assert_eq!(client("nonsense", peer, 1).as_deref(), Some("10.0.0.1"));
        assert_eq!(client("", peer, 2).as_deref(), Some("10.0.0.1"));
        assert_eq!(client("", "/run/envoy.sock", 0), None);
        assert_eq!(client("203.0.113.9", "/run/envoy.sock", 1).as_deref(), Some("203.0.113.9"));
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
            assert_eq!(client(entry, "10.0.0.1:1", 1).as_deref(), Some(expected), "{entry}");
        }
    }

    #[test]
    fn survives_hostile_input() {
        assert_eq!(client(&"1.2.3.4,".repeat(20_000), "10.0.0.1:1", 255).as_deref(), Some("10.0.0.1"));
        assert_eq!(client_address(&[0xff; 9_000], b"10.0.0.1:1", 4), "10.0.0.1".parse().ok());
        assert_eq!(client_address(b"\xff, 203.0.113.9", &[0xff; 70], 1), "203.0.113.9".parse().ok());
    }
}
