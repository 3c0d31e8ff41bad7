//! Who may call what. The RPCs that are not in these lists may be called by clients and containers alike:
//! code in a container is a client of the platform too.

/// RPCs that only a container calls, about itself: who it is comes from where the call arrives.
const CONTAINER: &[&str] = &[
    "ContainerCheckpoint",
    "ContainerHeartbeat",
    "ContainerHello",
    "ContainerLog",
    "ContainerServerLifecycleReady",
    "FlashContainerDeregister",
    "FlashContainerRegister",
    "FunctionCallGetDataIn",
    "FunctionGetDynamicConcurrency",
    "FunctionGetInputs",
    "FunctionPutOutputs",
    "FunctionStartPtyShell",
    "TaskClusterHello",
    "TaskResult",
    "TunnelStart",
    "TunnelStop",
];

/// RPCs that manage the workspace and its credentials: user code has no business there.
const CLIENT: &[&str] = &[
    "AuditLogCount",
    "AuditLogList",
    "AuditLogPlan",
    "AuditLogSettingsGet",
    "EnvironmentGetRoles",
    "EnvironmentRoleSet",
    "EnvironmentSetBudget",
    "EnvironmentSetDefaultMemberRole",
    "EnvironmentSetManaged",
    "ServiceUserCreate",
    "ServiceUserDelete",
    "ServiceUserInfo",
    "ServiceUserList",
    "TokenDelete",
    "TokenDisable",
    "TokenEnable",
    "TokensList",
    "UserGroupEnvironmentSet",
    "WebhookTokenCreate",
    "WebhookTokenDelete",
    "WebhookTokenEnvironmentAdd",
    "WebhookTokenEnvironmentRemove",
    "WebhookTokenUpdate",
    "WorkspaceMembersList",
    "WorkspaceSetDefaultEnvironment",
    "WorkspaceSetDefaultEnvironmentSettings",
    "WorkspaceSetImageBuilderVersion",
];

/// RPCs by which a client without a token gets one.
const PUBLIC: &[&str] = &["TokenFlowCreate", "TokenFlowWait"];

/// The variant of `Access` for the RPC `name`.
pub fn of(name: &str) -> &'static str {
    match name {
        _ if CONTAINER.contains(&name) => "Container",
        _ if CLIENT.contains(&name) => "Client",
        _ if PUBLIC.contains(&name) => "Public",
        _ => "Both",
    }
}

/// Every name in the lists; one that the schema does not have is a mistake.
pub fn listed() -> impl Iterator<Item = &'static str> {
    [CONTAINER, CLIENT, PUBLIC].into_iter().flatten().copied()
}
