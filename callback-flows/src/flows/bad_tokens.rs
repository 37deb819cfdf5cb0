//! Tokens that the keys of the flows have signed, and that no flow waits for.

use std::time::Duration;

use stable_interfaces::{Host, MemoryStore};

use super::{Call, Flows, FlowsError};
use crate::{Flow, UrlKeys};

#[tokio::test(start_paused = true)]
async fn a_token_of_another_run_is_gone_and_one_of_no_flow_creates_none() {
    let keys = UrlKeys::new("k1", [7; 32]).unwrap();
    let mut host = Host::local(MemoryStore::new());
    let flows = Flows::builder()
        .flow("one", 1, async |flow: Flow, (): ()| Ok(flow.callback::<u32>("go").next().await?))
        .callbacks("https://broker.example", keys.clone())
        .register(&mut host)
        .unwrap();
    let host = host.start().await.unwrap();
    flows.start("one", "a", &()).await.unwrap();
    let call = async |flow: &str, run: u32, callback: &str| {
        flows.deliver(&keys.sign(flow, run, callback), Call::new("7")).await
    };
    assert!(matches!(call("one/a", 2, "callback:go#0").await, Err(FlowsError::Gone)));
    assert!(matches!(call("one/b", 1, "callback:go#0").await, Err(FlowsError::NotFound)));
    assert!(matches!(call("two/a", 1, "callback:go#0").await, Err(FlowsError::NotFound)));
    assert_eq!(flows.get("one", "b").await.unwrap(), None);
    assert_eq!(flows.list(None, 10).await.unwrap().len(), 1);
    // One that the code has not begun may come yet.
    assert!(call("one/a", 1, "callback:later#0").await.is_ok());
    assert_eq!(flows.get("one", "a").await.unwrap().unwrap().unread, 1);
    assert!(call("one/a", 1, "callback:go#0").await.is_ok());
    assert!(matches!(call("one/a", 1, "callback:go#0").await, Err(FlowsError::Gone)));
    host.drain(Duration::from_secs(1)).await;
}
