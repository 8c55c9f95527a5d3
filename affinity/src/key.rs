//! The session key: how Mooring names a session without knowing its secret.

use core::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Odoo 19 rotates a session id softly: the first 42 characters stay, the rest changes.
const STABLE_PREFIX: usize = 42;
/// Session ids of this many bytes or more (Odoo 18 and later: 84) have that stable prefix.
const ROTATING_LENGTH: usize = 84;

/// The longest session id that Odoo could have made (20: 86 bytes), with room to spare.
pub const LONGEST_ID: usize = 128;

/// What soft rotation keeps of a session id: the first 42 bytes of one of 84 or more, else all of it.
pub fn stable_part(sid: &[u8]) -> &[u8] {
    let stable = if sid.len() >= ROTATING_LENGTH { sid.get(..STABLE_PREFIX) } else { None };
    stable.unwrap_or(sid)
}

/// 128 bits of BLAKE3 over the stable part of a session id, or over a client's address.
///
/// A session id is a bearer secret; its key is not, and may stand in logs, headers and Redis.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey([u8; 16]);

impl SessionKey {
    /// The key of a session id: of its first 42 bytes if it has 84 or more, else of all of it.
    pub fn of_session_id(sid: &[u8]) -> Self {
        Self::hash(stable_part(sid))
    }

    /// The key of a client without a session: IPv6 addresses count by their first
    /// `ipv6_prefix` bits (0 to 128), because one client has a whole network of them.
    ///
    /// An IPv4 address mapped into IPv6 is the IPv4 address.
    pub fn of_address(address: IpAddr, ipv6_prefix: u8) -> Self {
        // No session id can begin with a zero byte, so the two kinds of key never meet.
        let mut input = [0_u8; 17];
        let (_, bits) = input.split_at_mut(1);
        match address.to_canonical() {
            IpAddr::V4(v4) => bits.iter_mut().zip(v4.octets()).for_each(|(to, from)| *to = from),
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(ipv6_prefix.min(128))).unwrap_or(0);
                let network = (v6.to_bits() & mask).to_be_bytes();
                bits.iter_mut().zip(network).for_each(|(to, from)| *to = from);
            }
        }
        Self::hash(&input)
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The two halves of the key as numbers, big-endian.
    pub(crate) fn halves(self) -> (u64, u64) {
        let bits = u128::from_be_bytes(self.0);
        ((bits >> 64) as u64, bits as u64)
    }

    fn hash(input: &[u8]) -> Self {
        let mut key = [0; 16];
        key.iter_mut().zip(blake3::hash(input).as_bytes()).for_each(|(to, from)| *to = *from);
        Self(key)
    }
}

/// Shows that somebody holds a session's id whole: 128 bits of BLAKE3 over all of it, which no key tells.
///
/// The first 42 characters of an id are no secret (Odoo logs them and keeps them in its database), and those
/// who were given an id before a soft rotation have them too; see [`stable_part`]. It is no secret, either:
/// nothing leads back to the id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdProof([u8; 16]);

impl IdProof {
    /// What is hashed behind an id: its proof is another than its key. (BLAKE3's own way of keeping the two
    /// apart, a derived key, would add 4 KB to the filter.)
    const PURPOSE: &[u8] = b" is held whole";

    /// The proof of a session id.
    pub fn of_session_id(sid: &[u8]) -> Self {
        Self(SessionKey::hash(&[sid, Self::PURPOSE].concat()).0)
    }
}

impl fmt::Display for IdProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for IdProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for IdProof {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        SessionKey::from_str(text).map(|SessionKey(bytes)| Self(bytes))
    }
}

impl From<[u8; 16]> for SessionKey {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session key is 32 lower-case hexadecimal digits")]
pub struct InvalidKey;

impl FromStr for SessionKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut key = [0; 16];
        let lower_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut key) {
            Ok(()) if lower_case => Ok(Self(key)),
            _ => Err(InvalidKey),
        }
    }
}

impl Serialize for SessionKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for SessionKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            Deserialize::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sid(tail: char) -> String {
        format!("{}{}", "a".repeat(42), tail.to_string().repeat(42))
    }

    #[test]
    fn soft_rotation_keeps_the_key() {
        let before = SessionKey::of_session_id(sid('b').as_bytes());
        assert_eq!(before, SessionKey::of_session_id(sid('c').as_bytes()));
        assert_eq!(before, SessionKey::of_session_id(&[b'a'; 42]), "it is the key of the stable part");
    }

    #[test]
    fn a_proof_is_of_the_whole_id_and_no_key() {
        let whole = sid('b');
        let proof = IdProof::of_session_id(whole.as_bytes());
        for other in [&whole[..42], &whole[..83], &sid('c'), &format!("{whole}b"), &whole.to_uppercase()] {
            assert_ne!(proof, IdProof::of_session_id(other.as_bytes()), "{} characters", other.len());
        }
        assert_eq!(proof.to_string().parse(), Ok(proof));
        let old = [b'0'; 40];
        assert_ne!(IdProof::of_session_id(&old).to_string(), SessionKey::of_session_id(&old).to_string());
    }

    #[test]
    fn short_session_ids_count_whole() {
        let old = [b'0'; 40];
        assert_ne!(SessionKey::of_session_id(&old), SessionKey::of_session_id(&old[..39]));
        assert_ne!(SessionKey::of_session_id(&[b'a'; 83]), SessionKey::of_session_id(&[b'a'; 42]));
    }

    #[test]
    fn addresses_of_one_network_share_a_key() {
        let of = |text: &str, prefix| SessionKey::of_address(text.parse().unwrap(), prefix);
        assert_eq!(of("2001:db8:1:2::1", 64), of("2001:db8:1:2:ffff::9", 64));
        assert_ne!(of("2001:db8:1:2::1", 64), of("2001:db8:1:3::1", 64));
        assert_ne!(of("2001:db8::1", 128), of("2001:db8::2", 128));
        assert_eq!(of("2001:db8::1", 0), of("::", 0));
        assert_eq!(of("::ffff:192.0.2.7", 64), of("192.0.2.7", 64));
        assert_ne!(of("192.0.2.7", 64), of("192.0.2.8", 64));
    }

    #[test]
    fn text_form_is_read_back_and_nothing_else_is() {
        let key = SessionKey::of_session_id(b"x");
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in ["", "00", &"0".repeat(31), &"0".repeat(33), &"G".repeat(32), &"A".repeat(32)] {
            assert_eq!(bad.parse::<SessionKey>(), Err(InvalidKey), "{bad}");
        }
    }
}
