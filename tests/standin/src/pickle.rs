//! The part of Python's pickle that a session needs: what `pickle.dumps(dict, 5)` writes for dicts, lists,
//! strings, numbers, booleans and None. Only this form is read back.

use serde_json::{Map, Number, Value};

const PROTO: u8 = 0x80;
const FRAME: u8 = 0x95;
const MEMOIZE: u8 = 0x94;
const SHORT_BINUNICODE: u8 = 0x8c;
const BINUNICODE: u8 = b'X';
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
const BININT: u8 = b'J';
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const EMPTY_DICT: u8 = b'}';
const EMPTY_LIST: u8 = b']';
const MARK: u8 = b'(';
const SETITEM: u8 = b's';
const SETITEMS: u8 = b'u';
const APPEND: u8 = b'a';
const APPENDS: u8 = b'e';
const STOP: u8 = b'.';

/// The highest protocol of Python 3.8 and later, which Odoo 16 asks for.
const PROTOCOL: u8 = 5;

/// Pickles a value.
pub(crate) fn dumps(value: &Value) -> Vec<u8> {
    let mut body = Vec::with_capacity(512);
    write(value, &mut body);
    body.push(STOP);
    let mut out = vec![PROTO, PROTOCOL, FRAME];
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    out.append(&mut body);
    out
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(NONE),
        Value::Bool(true) => out.push(NEWTRUE),
        Value::Bool(false) => out.push(NEWFALSE),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_str(text, out),
        Value::Array(items) => {
            out.extend_from_slice(&[EMPTY_LIST, MEMOIZE]);
            if items.len() > 1 {
                out.push(MARK);
            }
            items.iter().for_each(|item| write(item, out));
            match items.len() {
                0 => {}
                1 => out.push(APPEND),
                _ => out.push(APPENDS),
            }
        }
        Value::Object(map) => {
            out.extend_from_slice(&[EMPTY_DICT, MEMOIZE]);
            if map.len() > 1 {
                out.push(MARK);
            }
            for (key, item) in map {
                write_str(key, out);
                write(item, out);
            }
            match map.len() {
                0 => {}
                1 => out.push(SETITEM),
                _ => out.push(SETITEMS),
            }
        }
    }
}

fn write_str(text: &str, out: &mut Vec<u8>) {
    match u8::try_from(text.len()) {
        Ok(len) => out.extend_from_slice(&[SHORT_BINUNICODE, len]),
        Err(_) => {
            out.push(BINUNICODE);
            out.extend_from_slice(&(text.len() as u32).to_le_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
    out.push(MEMOIZE);
}

fn write_number(number: &Number, out: &mut Vec<u8>) {
    let Some(int) = number.as_i64() else {
        out.push(BINFLOAT);
        out.extend_from_slice(&number.as_f64().unwrap_or_default().to_be_bytes());
        return;
    };
    if let Ok(byte) = u8::try_from(int) {
        out.extend_from_slice(&[BININT1, byte]);
    } else if let Ok(short) = u16::try_from(int) {
        out.push(BININT2);
        out.extend_from_slice(&short.to_le_bytes());
    } else if let Ok(word) = i32::try_from(int) {
        out.push(BININT);
        out.extend_from_slice(&word.to_le_bytes());
    } else {
        out.extend_from_slice(&[LONG1, 8]);
        out.extend_from_slice(&int.to_le_bytes());
    }
}

/// Reads back what [`dumps`] wrote; `None` for anything else.
pub(crate) fn loads(bytes: &[u8]) -> Option<Value> {
    let mut input = Input(bytes);
    let mut stack: Vec<Value> = Vec::new();
    let mut marks: Vec<usize> = Vec::new();
    loop {
        match input.byte()? {
            PROTO => {
                input.byte()?;
            }
            FRAME => {
                input.take(8)?;
            }
            MEMOIZE => {}
            NONE => stack.push(Value::Null),
            NEWTRUE => stack.push(Value::Bool(true)),
            NEWFALSE => stack.push(Value::Bool(false)),
            BININT1 => stack.push(input.byte()?.into()),
            BININT2 => stack.push(u16::from_le_bytes(input.array()?).into()),
            BININT => stack.push(i32::from_le_bytes(input.array()?).into()),
            LONG1 => match input.byte()? {
                8 => stack.push(i64::from_le_bytes(input.array()?).into()),
                _ => return None,
            },
            BINFLOAT => stack.push(f64::from_be_bytes(input.array()?).into()),
            SHORT_BINUNICODE => {
                let len = input.byte()?;
                stack.push(input.text(len.into())?);
            }
            BINUNICODE => {
                let len = u32::from_le_bytes(input.array()?);
                stack.push(input.text(len as usize)?);
            }
            EMPTY_DICT => stack.push(Value::Object(Map::new())),
            EMPTY_LIST => stack.push(Value::Array(Vec::new())),
            MARK => marks.push(stack.len()),
            SETITEM => fill_dict(&mut stack, None)?,
            SETITEMS => fill_dict(&mut stack, Some(marks.pop()?))?,
            APPEND => fill_list(&mut stack, None)?,
            APPENDS => fill_list(&mut stack, Some(marks.pop()?))?,
            STOP => return stack.pop(),
            _ => return None,
        }
    }
}

fn fill_dict(stack: &mut Vec<Value>, mark: Option<usize>) -> Option<()> {
    let from = mark.or_else(|| stack.len().checked_sub(2))?;
    let mut items = stack.drain(from.min(stack.len())..).collect::<Vec<_>>().into_iter();
    let map = stack.last_mut()?.as_object_mut()?;
    while let (Some(Value::String(key)), Some(value)) = (items.next(), items.next()) {
        map.insert(key, value);
    }
    Some(())
}

fn fill_list(stack: &mut Vec<Value>, mark: Option<usize>) -> Option<()> {
    let from = mark.or_else(|| stack.len().checked_sub(1))?;
    let items = stack.drain(from.min(stack.len())..).collect::<Vec<_>>();
    stack.last_mut()?.as_array_mut()?.extend(items);
    Some(())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn text(&mut self, len: usize) -> Option<Value> {
        Some(Value::String(std::str::from_utf8(self.take(len)?).ok()?.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn same_bytes_as_python() {
        // python3 -c 'import pickle; print(pickle.dumps({"context": {"lang": "en_US"}, "uid": None}, 5).hex())'
        let expected = concat!(
            "80059528000000000000007d94288c07636f6e74657874947d948c046c616e67",
            "948c05656e5f555394738c03756964944e752e"
        );
        let bytes = dumps(&json!({"context": {"lang": "en_US"}, "uid": null}));
        assert_eq!(hex::encode(&bytes), expected);
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let long = "x".repeat(300);
        let value = json!({
            "empty": {}, "none": [], "one": ["a"], "two": [1, 70_000], "deep": {"a": {"b": null}},
            "bool": [true, false], "float": 1.5, "big": 5_000_000_000_i64, "short": 300, "text": long, "é": "ü",
        });
        assert_eq!(loads(&dumps(&value)), Some(value));
    }

    #[test]
    fn refuses_other_bytes() {
        for bytes in
            [&b""[..], b"\x80\x05", b"{}", b"\x80\x05}\x94u.", b"u.", b"s.", b"\x80\x05cos\nsystem\n."]
        {
            assert_eq!(loads(bytes), None, "{bytes:?}");
        }
    }
}
