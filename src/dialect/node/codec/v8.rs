//! The part of V8's serialisation format (versions 13 to 15) with a counterpart in JSON.
//!
//! Owns the tags. Returns `None` for values that JSON does not have (dates, maps, big integers,
//! references to earlier objects, …): such a payload is valid and stays unparsed.

use serde_json::{Map, Number, Value};

use super::DEPTH_MAX;

/// First byte of a payload, before the version.
const VERSION_TAG: u8 = 0xff;
/// The version written by Node 18 to 25.
const VERSION: u8 = 15;

const PADDING: u8 = 0;
const UNDEFINED: u8 = b'_';
const NULL: u8 = b'0';
const TRUE: u8 = b'T';
const FALSE: u8 = b'F';
const INT32: u8 = b'I';
const UINT32: u8 = b'U';
const DOUBLE: u8 = b'N';
const UTF8: u8 = b'S';
const ONE_BYTE: u8 = b'"';
const TWO_BYTE: u8 = b'c';
const OBJECT: u8 = b'o';
const OBJECT_END: u8 = b'{';
const ARRAY: u8 = b'A';
const ARRAY_END: u8 = b'$';
const HOLE: u8 = b'-';
const SPARSE_ARRAY: u8 = b'a';
const SPARSE_ARRAY_END: u8 = b'@';
/// Maximum number of missing elements in a sparse array. Its length is an unverified claim.
const LACKING_MAX: usize = 1024;

/// Whether a payload starts like one of V8's.
pub(super) fn is_payload(payload: &[u8]) -> bool {
    matches!(payload, [VERSION_TAG, 13..=15, ..])
}

/// The value of a payload; `None` if it has no counterpart in JSON or is truncated. `undefined` is
/// omitted, as in JSON.
pub(super) fn read(payload: &[u8]) -> Option<Value> {
    let mut reader = Reader { rest: payload.get(2..)? };
    let value = reader.value(0)?;
    reader.rest.is_empty().then(|| value.unwrap_or(Value::Null))
}

/// The first property of an object payload, if it is a string called `cmd`. Node writes it first in
/// its internal messages.
pub(super) fn command(payload: &[u8]) -> Option<String> {
    let mut reader = Reader { rest: payload.get(2..)? };
    (reader.tag()? == OBJECT).then_some(())?;
    match (reader.value(1)??, reader.value(1)??) {
        (Value::String(name), Value::String(command)) if name == "cmd" => Some(command),
        _ => None,
    }
}

/// Reads values. Every step consumes at least one byte, so work and memory are bounded by the
/// length of the payload.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(bytes)
    }

    fn tag(&mut self) -> Option<u8> {
        loop {
            match self.byte()? {
                PADDING => {}
                tag => return Some(tag),
            }
        }
    }

    /// A number in groups of seven bits, lowest first.
    fn varint(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(number).ok();
            }
        }
        None
    }

    fn block(&mut self) -> Option<&'a [u8]> {
        let length = self.varint()?;
        self.bytes(usize::try_from(length).ok()?)
    }

    /// A value; the inner `None` is `undefined`.
    fn value(&mut self, depth: usize) -> Option<Option<Value>> {
        if depth > DEPTH_MAX {
            return None;
        }
        Some(Some(match self.tag()? {
            UNDEFINED | HOLE => return Some(None),
            NULL => Value::Null,
            TRUE => Value::Bool(true),
            FALSE => Value::Bool(false),
            INT32 => {
                let folded = self.varint()?;
                let magnitude = i64::from(folded >> 1);
                Value::from(if folded & 1 == 0 { magnitude } else { -magnitude - 1 })
            }
            UINT32 => Value::from(self.varint()?),
            DOUBLE => number(f64::from_le_bytes(self.bytes(8)?.try_into().ok()?)),
            UTF8 => Value::String(std::str::from_utf8(self.block()?).ok()?.to_owned()),
            ONE_BYTE => Value::String(self.block()?.iter().map(|byte| char::from(*byte)).collect()),
            TWO_BYTE => Value::String(two_byte(self.block()?)?),
            OBJECT => self.object(depth)?,
            ARRAY => self.array(depth)?,
            SPARSE_ARRAY => self.sparse_array(depth)?,
            _ => return None,
        }))
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut object = Map::new();
        self.properties(depth, OBJECT_END, |key, value| {
            let key = match key {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                _ => return false,
            };
            object.insert(key, value);
            true
        })?;
        Some(Value::Object(object))
    }

    /// Reads keys and values up to an end tag, and counts them. `undefined` values are omitted.
    fn properties(
        &mut self,
        depth: usize,
        end: u8,
        mut take: impl FnMut(Value, Value) -> bool,
    ) -> Option<()> {
        let mut count = 0;
        loop {
            while self.rest.first() == Some(&PADDING) {
                self.byte();
            }
            if self.rest.first() == Some(&end) {
                self.byte();
                return (self.varint()? == count).then_some(());
            }
            let key = self.value(depth + 1)??;
            if let Some(value) = self.value(depth + 1)? {
                take(key, value).then_some(())?;
            }
            count += 1;
        }
    }

    /// An array that has or once had missing elements; V8 writes both in this form.
    fn sparse_array(&mut self, depth: usize) -> Option<Value> {
        let length = usize::try_from(self.varint()?).ok()?;
        let mut items = Vec::new();
        let mut present = 0;
        self.properties(depth, SPARSE_ARRAY_END, |key, value| {
            let place = key.as_u64().and_then(|place| usize::try_from(place).ok());
            present += 1;
            let Some(place) = place.filter(|place| *place < length.min(present + LACKING_MAX))
            else {
                return false;
            };
            if place >= items.len() {
                items.resize(place + 1, Value::Null);
            }
            items[place] = value;
            true
        })?;
        let ends = self.varint()? as usize == length && length <= present + LACKING_MAX;
        items.resize(if ends { length } else { 0 }, Value::Null);
        ends.then_some(Value::Array(items))
    }

    /// An array without extra properties.
    fn array(&mut self, depth: usize) -> Option<Value> {
        let length = self.varint()?;
        // The length is unverified, so memory is allocated only for elements that follow.
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(self.value(depth + 1)?.unwrap_or(Value::Null));
        }
        let ends = self.tag()? == ARRAY_END && self.varint()? == 0 && self.varint()? == length;
        ends.then_some(Value::Array(items))
    }
}

fn two_byte(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2);
    units.remainder().is_empty().then_some(())?;
    let units: Vec<u16> = units.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    String::from_utf16(&units).ok()
}

/// A number as JSON has it: integers without a fraction, and null for NaN and infinity.
fn number(double: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if double.fract() == 0.0 && double.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
        return Value::from(double as i64);
    }
    Number::from_f64(double).map_or(Value::Null, Value::Number)
}

/// Appends the payload of this value.
pub(super) fn write(value: &Value, payload: &mut Vec<u8>) {
    let begin = payload.len();
    payload.extend_from_slice(&[VERSION_TAG, VERSION]);
    write_value(value, payload, begin);
}

fn write_value(value: &Value, payload: &mut Vec<u8>, begin: usize) {
    match value {
        Value::Null => payload.push(NULL),
        Value::Bool(true) => payload.push(TRUE),
        Value::Bool(false) => payload.push(FALSE),
        Value::Number(number) => write_number(number, payload),
        Value::String(text) => write_text(text, payload, begin),
        Value::Array(items) => {
            payload.push(ARRAY);
            write_varint(items.len(), payload);
            items.iter().for_each(|item| write_value(item, payload, begin));
            payload.extend_from_slice(&[ARRAY_END, 0]);
            write_varint(items.len(), payload);
        }
        Value::Object(object) => {
            payload.push(OBJECT);
            for (key, value) in object {
                write_text(key, payload, begin);
                write_value(value, payload, begin);
            }
            payload.push(OBJECT_END);
            write_varint(object.len(), payload);
        }
    }
}

fn write_number(number: &Number, payload: &mut Vec<u8>) {
    if let Some(small) = number.as_i64().and_then(|number| i32::try_from(number).ok()) {
        payload.push(INT32);
        let folded = (small << 1) ^ (small >> 31);
        return write_varint(folded.cast_unsigned() as usize, payload);
    }
    payload.push(DOUBLE);
    // Without `arbitrary_precision`, every JSON number is representable as a double.
    payload.extend_from_slice(&number.as_f64().unwrap_or(f64::NAN).to_le_bytes());
}

fn write_text(text: &str, payload: &mut Vec<u8>, begin: usize) {
    if text.chars().all(|letter| u32::from(letter) < 256) {
        payload.push(ONE_BYTE);
        write_varint(text.chars().count(), payload);
        return payload.extend(text.chars().filter_map(|letter| u8::try_from(letter).ok()));
    }
    let length = text.encode_utf16().count() * 2;
    let mut head = Vec::with_capacity(6);
    head.push(TWO_BYTE);
    write_varint(length, &mut head);
    // Two-byte characters start at an even offset, as V8 writes them.
    if (payload.len() - begin + head.len()) % 2 == 1 {
        payload.push(PADDING);
    }
    payload.extend_from_slice(&head);
    payload.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
}

fn write_varint(mut number: usize, payload: &mut Vec<u8>) {
    loop {
        let group = u8::try_from(number & 0x7f).expect("seven bits fit");
        number >>= 7;
        if number == 0 {
            return payload.push(group);
        }
        payload.push(group | 0x80);
    }
}
