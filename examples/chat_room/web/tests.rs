use super::*;

#[test]
fn a_page_of_another_site_is_not_let_in() {
    let headers = |origin: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "127.0.0.1:8080".parse().expect("a value"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().expect("a value"));
        }
        headers
    };
    assert!(is_same_origin(&headers(Some("http://127.0.0.1:8080"))));
    assert!(is_same_origin(&headers(None)));
    for other in ["http://127.0.0.1:8081", "https://example.com", "null", ""] {
        assert!(!is_same_origin(&headers(Some(other))), "{other}");
    }
}

#[test]
fn a_reason_is_cut_where_a_character_ends() {
    assert_eq!(frame(1013, &"ü".repeat(100)).reason.len(), 122);
    assert_eq!(&*frame(1013, "short").reason, "short");
}
