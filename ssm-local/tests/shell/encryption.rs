//! Encrypted sessions, and the KMS API.

use serde_json::{Value, json};
use ssm_local::{KmsFault, Local, SessionState};

use crate::client::{Client, INTERACTIVE, NON_INTERACTIVE, SHELL, assert_ended, builder, call, ended};

#[tokio::test]
async fn shells_and_commands_are_encrypted() {
    let local = builder().encrypt_with("alias/lab").start().await.unwrap();
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    shell.resize(90, 40);
    shell.type_in("echo a$((1 + 1))b; stty size\n");
    shell.expect("a2b\r\n40 90\r\n").await;
    assert_eq!(shell.message, "This session is encrypted using AWS KMS.");
    shell.type_in("exit\n");
    assert_eq!(shell.end().await, "");
    for document in [INTERACTIVE, NON_INTERACTIVE] {
        let (_, mut command) = Client::start(&local, document, json!({ "command": ["echo secret"] })).await;
        command.end().await;
        assert!(String::from_utf8(command.stdout).unwrap().starts_with("secret"));
        assert!(command.message.contains("KMS"));
    }
}

#[tokio::test]
async fn a_document_names_the_key() {
    let document = |key: &str| {
        json!({ "schemaVersion": "1.0", "sessionType": "Standard_Stream", "inputs": { "kmsKeyId": key } }).to_string()
    };
    let local = builder()
        .kms_key("1234-abcd")
        .document(SHELL, document("arn:aws:kms:us-east-1:123456789012:key/1234-abcd"))
        .document("Own-Unknown", document("alias/unknown"))
        .start()
        .await
        .unwrap();
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    shell.type_in("echo a$((1 + 1))b\n");
    shell.expect("a2b\r\n").await;
    assert!(shell.message.contains("KMS"));

    let (_, mut shell) = Client::start(&local, "Own-Unknown", json!({})).await;
    let text = shell.end().await;
    assert!(text.contains("NotFoundException"), "{text}");
    assert!(shell.failure.unwrap().contains("NotFoundException"));
}

#[tokio::test]
async fn an_agent_that_can_t_decrypt_the_data_key_fails_the_session() {
    let faults =
        [(KmsFault::WrongKey, "IncorrectKeyException"), (KmsFault::TamperedCiphertext, "InvalidCiphertextException")];
    for (fault, exception) in faults {
        let local = builder().encrypt_with("alias/lab").kms_fault(fault).start().await.unwrap();
        let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
        let text = shell.end().await;
        assert!(text.contains("Fetching data key failed") && text.contains(exception), "{text}");
        assert_eq!(ended(&local).await.state, SessionState::Failed);
    }
}

#[tokio::test]
async fn a_client_that_can_t_read_the_challenge_says_so() {
    let local = builder().encrypt_with("alias/lab").kms_fault(KmsFault::WrongDataKey).start().await.unwrap();
    let (_, mut shell) = Client::start(&local, SHELL, json!({})).await;
    shell.run_until("a failure", |client| client.failure.is_some()).await;
    assert!(shell.failure.unwrap().contains("challenge"));
    assert!(shell.stdout.is_empty());
}

async fn kms(local: &Local, operation: &str, body: Value) -> (u16, Value) {
    call(local, &format!("TrentService.{operation}"), body).await
}

#[tokio::test]
async fn a_data_key_is_decrypted_for_who_asks_right() {
    let local = Local::builder().kms_key("alias/a").kms_key("alias/b").start().await.unwrap();
    let context = json!({ "aws:ssm:SessionId": "s", "aws:ssm:TargetId": "i-1" });
    let body = json!({ "KeyId": "alias/a", "NumberOfBytes": 64, "EncryptionContext": context });
    let (status, made) = kms(&local, "GenerateDataKey", body).await;
    assert_eq!(status, 200, "{made}");
    assert_eq!(made["Plaintext"].as_str().unwrap().len(), 88);
    let blob = &made["CiphertextBlob"];
    for key in [json!("alias/a"), made["KeyId"].clone(), Value::Null] {
        let body = json!({ "CiphertextBlob": blob, "KeyId": key, "EncryptionContext": context });
        let (status, got) = kms(&local, "Decrypt", body).await;
        assert_eq!((status, &got["Plaintext"], &got["KeyId"]), (200, &made["Plaintext"], &made["KeyId"]));
    }
    let refused = [
        (json!({ "CiphertextBlob": blob }), "InvalidCiphertextException"),
        (json!({ "CiphertextBlob": "AAAA", "EncryptionContext": context }), "InvalidCiphertextException"),
        (json!({ "CiphertextBlob": blob, "KeyId": "alias/b", "EncryptionContext": context }), "IncorrectKeyException"),
        (json!({ "CiphertextBlob": blob, "KeyId": "alias/c", "EncryptionContext": context }), "NotFoundException"),
        (json!({}), "ValidationException"),
    ];
    for (body, exception) in refused {
        let (status, error) = kms(&local, "Decrypt", body).await;
        assert_eq!((status, error["__type"].as_str().unwrap()), (400, exception));
    }
    let (_, made) = kms(&local, "GenerateDataKey", json!({ "KeyId": "alias/a", "KeySpec": "AES_256" })).await;
    assert_eq!(made["Plaintext"].as_str().unwrap().len(), 44);
    for body in [json!({ "KeyId": "alias/a" }), json!({ "KeyId": "alias/a", "NumberOfBytes": 1025 })] {
        let (_, error) = kms(&local, "GenerateDataKey", body).await;
        assert_eq!(error["__type"], "ValidationException");
    }
}

#[tokio::test]
async fn a_command_without_encryption_is_not_asked_for_a_key() {
    let local = builder().kms_key("alias/lab").start().await.unwrap();
    let (_, mut command) = Client::start(&local, NON_INTERACTIVE, json!({ "command": ["echo x"] })).await;
    command.end().await;
    assert_eq!((command.message.as_str(), &*command.stdout), ("", &b"x\n"[..]));
    assert_ended(&local, SessionState::Terminated, "").await;
}
