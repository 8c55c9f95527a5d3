//! The bytes of a session file: JSON as Python writes it (18 and later) or pickle (17 and older).

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::cli::Profile;
use crate::pickle;
use crate::session::Data;

/// The bytes of a session file.
pub(crate) fn encode(profile: Profile, data: &Data) -> serde_json::Result<Vec<u8>> {
    if profile.pickles() {
        return Ok(pickle::dumps(&serde_json::to_value(data)?));
    }
    let mut out = Vec::with_capacity(512);
    data.serialize(&mut Serializer::with_formatter(&mut out, Python))?;
    Ok(out)
}

/// The session in a file; `None` when the bytes are of another form.
pub(crate) fn decode(profile: Profile, bytes: &[u8]) -> Option<Data> {
    if profile.pickles() {
        serde_json::from_value(pickle::loads(bytes)?).ok()
    } else {
        serde_json::from_slice(bytes).ok()
    }
}

/// Python's `json.dump`: a space after each comma and colon, nothing but ASCII.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        if text.is_ascii() {
            return out.write_all(text.as_bytes());
        }
        for unit in text.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if byte.is_ascii() => out.write_all(&[byte])?,
                _ => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_pythons_spacing_and_is_ascii() {
        let data =
            Data { login: Some("zoë".to_owned()), create_time: Some(1.5), ..Data::anonymous(Profile::V19) };
        let bytes = encode(Profile::V19, &data).unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"context": {"lang": "en_US"}, "create_time": 1.5, "db": "odoo", "debug": "", "login": "zo\u00eb", "uid": null, "session_token": null, "_trace": []}"#
        );
        assert_eq!(decode(Profile::V19, &bytes), Some(data));
    }

    #[test]
    fn both_forms_come_back_and_neither_reads_the_other() {
        for (profile, other) in [(Profile::V16, Profile::V18), (Profile::V18, Profile::V16)] {
            let data = Data { uid: Some(2), ..Data::anonymous(profile) };
            let bytes = encode(profile, &data).unwrap();
            assert_eq!(decode(profile, &bytes), Some(data));
            assert_eq!(decode(other, &bytes), None);
        }
    }
}
