//! A port that stays one server's, also while that is not running.
//!
//! A server that was killed comes back on its port, and whoever asks the system for any port meanwhile would be given just that one. So a
//! socket is bound to it for as long as this is there. It does not listen: whoever connects is refused while the server is away, and the server
//! itself, which names the port and lets its address be shared (`SO_REUSEADDR`), is let in.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port on 127.0.0.1.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    /// Only Linux lets a server in beside it.
    _kept: Option<TcpSocket>,
}

impl Port {
    /// A port that nobody uses at the moment, and on Linux nobody else will.
    pub(super) fn free() -> Port {
        let socket = TcpSocket::new_v4().expect("the system has a socket");
        socket.set_reuseaddr(true).expect("a new socket takes its options");
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("127.0.0.1 has a free port");
        let number = socket.local_addr().expect("a bound socket has an address").port();
        Port { number, _kept: cfg!(target_os = "linux").then_some(socket) }
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }
}
