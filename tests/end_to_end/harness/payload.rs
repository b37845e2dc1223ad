//! A payload that says which reading it is and can be made again, so that a changed byte is noticed.

/// `{"device":"d1","n":7,"pad":"..."}`, at least `bytes` long.
pub fn payload(device: &str, number: u64, bytes: usize) -> Vec<u8> {
    let mut text = format!("{{\"device\":\"{device}\",\"n\":{number},\"pad\":\"");
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ device.len() as u64;
    while text.len() + 2 < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(char::from(b'a' + (state >> 59) as u8 % 26));
    }
    text.push_str("\"}");
    text.into_bytes()
}

/// Which reading a payload is, if it is one of ours and no byte of it has changed.
pub fn identify(value: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (device, rest) = text.strip_prefix("{\"device\":\"")?.split_once("\",\"n\":")?;
    let number = rest.split_once(',')?.0.parse().ok()?;
    (payload(device, number, value.len()) == value).then(|| (device.to_owned(), number))
}

#[test]
fn a_payload_with_a_changed_byte_is_not_identified() {
    let mut value = payload("d1", 17, 200);
    assert_eq!(value.len(), 200);
    assert_eq!(identify(&value), Some(("d1".to_owned(), 17)));
    value[150] ^= 1;
    assert_eq!(identify(&value), None);
}
