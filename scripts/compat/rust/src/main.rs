//! rocketman, which reconnects by itself, with the last time_us.

use rocketman::{
    connection::JetstreamConnection,
    endpoints::JetstreamEndpoints,
    handler::{handle_message, Ingestors},
    ingestion::LexiconIngestor,
    options::JetstreamOptions,
    types::event::Event,
};
use serde_json::Value;
use std::sync::{Arc, Mutex};

struct Print;

#[async_trait::async_trait]
impl LexiconIngestor for Print {
    async fn ingest(&self, event: Event<Value>) -> anyhow::Result<()> {
        println!("{}", serde_json::to_string(&event)?);
        Ok(())
    }
}

fn strings(list: &Value) -> Option<Vec<String>> {
    let list = list.as_array()?;
    Some(list.iter().map(|s| s.as_str().unwrap().to_string()).collect())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let order: Value = serde_json::from_str(&std::env::args().nth(1).unwrap())?;
    let connection = JetstreamConnection::new(JetstreamOptions {
        ws_url: JetstreamEndpoints::Custom(format!("{}/subscribe", order["endpoint"].as_str().unwrap())),
        wanted_collections: strings(&order["collections"]),
        wanted_dids: strings(&order["dids"]),
        compress: order["compress"].as_bool().unwrap(),
        ..Default::default()
    });
    let mut ingestors = Ingestors::new();
    for collection in strings(&order["known"]).unwrap() {
        ingestors.commits.insert(collection, Box::new(Print));
    }
    ingestors.identity = Some(Box::new(Print));
    ingestors.account = Some(Box::new(Print));

    let cursor = Arc::new(Mutex::new(order["cursor"].as_u64()));
    let compressed = connection.opts.compress;
    let (messages, reconnect) = (connection.get_msg_rx(), connection.get_reconnect_tx());
    let seen = cursor.clone();
    tokio::spawn(async move {
        while let Ok(message) = messages.recv().await {
            if message.is_binary() || message.is_text() {
                assert_eq!(message.is_binary(), compressed);
            }
            if let Err(e) = handle_message(message, &ingestors, reconnect.clone(), seen.clone()).await {
                eprintln!("error: {e}");
            }
        }
    });
    if let Err(e) = connection.connect(cursor).await {
        eprintln!("error: {e}");
    }
    Ok(())
}
