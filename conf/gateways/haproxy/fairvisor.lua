-- Asks Fairvisor Edge about a request: the action `http-request lua.fairvisor`, for HAProxy 2.6 and later.
--
-- A reject is answered here, as Fairvisor words it, and a head that is too large to ask about with 431. Otherwise the
-- variable txn.fairvisor says "allowed" or "undecided" (no answer in time, or none that decides), and the configuration
-- chooses what an undecided request gets. What the client sees of an allow is in the variables txn.fairvisor_*.

local URL = os.getenv("EDGE_URL") .. "/v1/decision"
local TIMEOUT_MS = tonumber(os.getenv("EDGE_TIMEOUT_MS"))
local TOKEN = os.getenv("FAIRVISOR_DECISION_TOKEN")

-- The headers that policies read. Where EDGE_HEADERS names them, only those are sent.
local READ = {}
for name in (os.getenv("EDGE_HEADERS") or ""):lower():gmatch("[^%s,]+") do
    READ[name] = true
end
local READS_ALL = next(READ) == nil

-- HAProxy's HTTP client has room for tune.http.maxhdr lines (101). More crash HAProxy 2.6 and raise an error in 2.8.
local MAX_LINES = 90
local TOO_LARGE = [[{"error":{"message":"The request has too many header lines, or its head is too large.",]]
    .. [["type":"invalid_request_error","param":null,"code":431}}]]

-- What a client must not tell Fairvisor, and what belongs to its own connection (RFC 9110 7.6.1).
local DROPPED = {
    ["host"] = true, ["connection"] = true, ["keep-alive"] = true, ["te"] = true, ["trailer"] = true,
    ["upgrade"] = true, ["transfer-encoding"] = true, ["content-length"] = true, ["expect"] = true,
    ["proxy-connection"] = true, ["forwarded"] = true,
    ["x-country-code"] = true, ["x-asn"] = true, ["x-asn-type"] = true, ["x-tor-exit"] = true,
    ["x-token-estimate"] = true,
}
local DROPPED_PREFIXES = {"x-original-", "x-forwarded-", "x-fairvisor-"}

local SHOWN = {
    ["ratelimit"] = "txn.fairvisor_ratelimit",
    ["ratelimit-policy"] = "txn.fairvisor_ratelimit_policy",
    ["ratelimit-limit"] = "txn.fairvisor_ratelimit_limit",
    ["ratelimit-remaining"] = "txn.fairvisor_ratelimit_remaining",
    ["ratelimit-reset"] = "txn.fairvisor_ratelimit_reset",
    ["x-fairvisor-warning"] = "txn.fairvisor_warning",
    ["x-fairvisor-loop-count"] = "txn.fairvisor_loop_count",
}
-- What a reject does not show: the fields of the answer's own connection.
local OF_CONNECTION = {
    ["connection"] = true, ["keep-alive"] = true, ["transfer-encoding"] = true, ["content-length"] = true,
    ["date"] = true,
}

local function is_sent(name)
    if DROPPED[name] or name:find("_", 1, true) then  -- a WSGI server may take an underscore for a dash
        return false
    end
    for _, prefix in ipairs(DROPPED_PREFIXES) do
        if name:sub(1, #prefix) == prefix then
            return false
        end
    end
    return READS_ALL or READ[name]
end

-- The headers of the question, and how many lines of the client are among them.
local function question(txn)
    local headers, lines = {}, 0
    for name, values in pairs(txn.http:req_get_headers()) do
        if is_sent(name) then
            -- HAProxy counts the lines of a field from 0, and would send line 0 last.
            headers[name] = {table.unpack(values, 0)}
            lines = lines + #headers[name]
        end
    end
    headers["x-original-method"] = {txn.f:method()}
    headers["x-original-uri"] = {txn.f:pathq()}
    headers["x-original-host"] = {txn.f:req_fhdr("host") or ""}
    headers["x-forwarded-for"] = {txn.f:src()}
    headers["x-fairvisor-request-id"] = {txn.f:uuid()}
    if TOKEN then
        headers["x-fairvisor-token"] = {TOKEN}
    end
    return headers, lines
end

local function reject(txn, answer)
    local reply = txn:reply{status = answer.status, reason = answer.reason, body = answer.body}
    for name, values in pairs(answer.headers) do
        if not OF_CONNECTION[name] then
            for _, value in pairs(values) do
                reply:add_header(name, value)
            end
        end
    end
    txn:done(reply)
end

local function reject_head(txn)
    local reply = txn:reply{status = 431, reason = "Request Header Fields Too Large", body = TOO_LARGE}
    reply:add_header("cache-control", "no-store")
    reply:add_header("content-type", "application/json")
    txn:done(reply)
end

local function decide(txn)
    local headers, lines = question(txn)
    if lines > MAX_LINES then
        return reject_head(txn)
    end
    -- An error is raised where the question does not fit into a buffer (tune.bufsize), before anything is asked.
    local client = core.httpclient()
    local asked, answer = pcall(client.get, client, {url = URL, headers = headers, timeout = TIMEOUT_MS})
    if not asked then
        core.Warning("fairvisor: a request was answered with 431: " .. tostring(answer))
        return reject_head(txn)
    end
    local status = answer and answer.status or 0
    if status == 204 or status == 200 then
        for name, variable in pairs(SHOWN) do
            local values = answer.headers[name]
            if values then
                txn:set_var(variable, values[0])
            end
        end
        txn:set_var("txn.fairvisor", "allowed")
    elseif status >= 400 and status < 500 then
        reject(txn, answer)
    else
        txn:set_var("txn.fairvisor", "undecided")
    end
end

core.register_action("fairvisor", {"http-req"}, decide, 0)
