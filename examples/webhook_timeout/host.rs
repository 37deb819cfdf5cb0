//! One host of the drill: the service in a process that is killed and started again.

use std::net::SocketAddr;

use callback_flows::UrlKeys;
use examples::{CannotStart, Failed, in_one_line, process};
use reqwest::Url;
use tokio::net::TcpListener;

use crate::store::Home;
use crate::{flow_service, service};

/// The secret that the drill's callback URLs are signed with, which needs to be none.
const NO_SECRET: &str = "a drill has no secrets";

/// The options of `serve`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) home: Home,
    pub(crate) listen: SocketAddr,
    pub(crate) partner: Option<Url>,
    /// The fleet as the partner reaches it; without it, the address at which this host listens.
    pub(crate) public: Option<Url>,
    /// The service is the one that is written as a flow.
    pub(crate) is_flow: bool,
    /// Stop when standard input ends: how a child learns that its parent is gone.
    pub(crate) until_stdin_ends: bool,
}

/// Serves orders until the process is asked to stop.
pub(crate) async fn serve(options: Options) -> Result<(), Failed> {
    let Options { home, listen, partner, public, is_flow, until_stdin_ends } = options;
    let cannot_listen = |error| CannotStart::new(format!("cannot listen on {listen}"), error);
    let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
    let host = home.host(&listener.local_addr().map_err(cannot_listen)?.to_string()).await?;
    let stop = process::asked_to_stop(until_stdin_ends);
    if is_flow {
        let keys = UrlKeys::new("drill", NO_SECRET);
        let keys = keys.map_err(|e| CannotStart::new("cannot sign URLs", in_one_line(&e)))?;
        return Ok(flow_service::serve(host, listener, (partner, public), keys, stop).await?);
    }
    Ok(service::serve(host, listener, (partner, public), stop).await?)
}

#[cfg(test)]
mod tests {
    use reqwest::Url;

    use crate::service::{Partner, is_same};

    #[test]
    fn a_callback_url_is_right_for_any_order_id() {
        let public = "http://127.0.0.1:8080/".to_owned();
        let partner = Partner { http: reqwest::Client::new(), orders: None, public };
        for id in [
            ".",
            "..",
            "...",
            "%2e",
            "%2E%2E",
            "a/b ü?",
            "/",
            "//",
            "\\",
            "\r",
            "\n",
            "\t",
            " a\r\nb\t",
            "%",
            "%0d",
            "?",
            "#",
            "?a=b#c",
            "-",
            "a-b",
            "日本",
            "é\u{301}",
            "+",
            "&",
            ";",
            ":",
            "@",
            "\u{7f}",
            "\u{202e}",
        ] {
            let url = partner.callback(id, "t0");
            // As whoever gets it reads it: nothing is taken away, added or normalised.
            let read = Url::parse(&url).expect("a URL");
            assert_eq!(read.as_str(), url, "{id:?}");
            let segment = read.path().strip_prefix("/callbacks/t0-").unwrap_or("/");
            assert!(!segment.contains('/') && read.query().is_none() && read.fragment().is_none(), "{id:?}: {url}");
            let decoded = percent_encoding::percent_decode_str(segment).decode_utf8().expect("UTF-8");
            assert_eq!(decoded, id);
        }
    }

    #[test]
    fn a_token_is_the_same_only_as_itself() {
        let (a, b) = ("0123456789abcdef", "0123456789abcdee");
        assert!(is_same(a, a) && !is_same(a, b) && !is_same(a, &a[1..]) && !is_same(a, ""));
    }
}
