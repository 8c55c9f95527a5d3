//! Bytes from outside never panic the parsers, whatever they are.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used)]

use affinity::{
    Port, SessionKey,
    address::{client_address, peer_address},
    cookie,
};
use proptest::{collection::vec, prelude::*};

fn header() -> impl Strategy<Value = Vec<u8>> {
    // Near misses are found by pieces of the real thing between random bytes.
    let pieces = prop_oneof![
        Just(b"session_id=".to_vec()),
        Just(b"; ".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"[2001:db8::1]:8069".to_vec()),
        Just(b"203.0.113.9, ".to_vec()),
        vec(any::<u8>(), 0..40),
    ];
    vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn cookies(header in header()) {
        if let Some(sid) = cookie::session_id(&header) {
            prop_assert!(!sid.is_empty() && !sid.contains(&b';'));
            prop_assert!(header.windows(sid.len()).any(|window| window == sid));
            SessionKey::of_session_id(sid);
        }
        cookie::set_session_id(&[&header, &header]);
    }

    #[test]
    fn a_cookie_is_found_behind_any_others(others in "([a-z]{1,8}=[a-zA-Z0-9]{0,20}; ){0,20}", sid in "[A-Za-z0-9_-]{1,90}") {
        prop_assume!(!others.contains("session_id"));
        let header = format!("{others}session_id={sid}");
        prop_assert_eq!(cookie::session_id(header.as_bytes()), Some(sid.as_bytes()));
    }

    #[test]
    fn addresses(header in header(), trusted in any::<u8>(), prefix in any::<u8>()) {
        for address in [client_address(&header, trusted), peer_address(&header)].into_iter().flatten() {
            SessionKey::of_address(address, prefix);
        }
    }

    #[test]
    fn a_client_cannot_choose_its_address(forged in header(), trusted in 1_u8..4) {
        // Whatever the client sent, its proxies and Envoy appended what they saw.
        let seen = (0..=trusted).map(|hop| format!(", 10.0.0.{hop}")).collect::<String>();
        let chain = [forged.as_slice(), seen.as_bytes()].concat();
        prop_assert_eq!(client_address(&chain, trusted).unwrap().to_string(), "10.0.0.0");
    }

    #[test]
    fn paths(path in header()) {
        Port::of_path(&path);
    }
}
