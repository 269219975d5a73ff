-- What the plugin uses of lua-resty-http, which Kong brings along: one request on a pooled connection, its answer whole.

local Client = {}
Client.__index = Client

local FOLDED = { __index = function(headers, name) return rawget(headers, name:lower()) end }


local function receive_answer(socket)
  local line, err = socket:receive("*l")
  if not line then
    return nil, err
  end
  local status = tonumber(line:match("^HTTP/1%.[01] (%d%d%d)"))
  if not status then
    return nil, "not HTTP: " .. line
  end
  local headers = setmetatable({}, FOLDED)
  while true do
    line, err = socket:receive("*l")
    if not line then
      return nil, err
    end
    if line == "" then
      break
    end
    local name, value = line:match("^([^:]+):%s*(.-)%s*$")
    if not name then
      return nil, "not a header: " .. line
    end
    headers[name:lower()] = value
  end
  local body = ""
  local length = tonumber(headers["content-length"]) or 0
  if length > 0 then
    body, err = socket:receive(length)
    if not body then
      return nil, err
    end
  end
  return { status = status, headers = headers, body = body }
end


function Client:set_timeout(timeout_ms)
  self.timeout_ms = timeout_ms
end


function Client:request_uri(uri, params)
  local host, port, path = uri:match("^http://([^:/]+):(%d+)(/.*)$")
  local socket = ngx.socket.tcp()
  socket:settimeout(self.timeout_ms)
  local ok, err = socket:connect(host, tonumber(port))
  if not ok then
    return nil, err
  end
  local lines = { params.method .. " " .. path .. " HTTP/1.1", "Host: " .. host,
                  "Content-Length: " .. #params.body }
  for name, value in pairs(params.headers) do
    for _, each in ipairs(type(value) == "table" and value or { value }) do
      lines[#lines + 1] = name .. ": " .. each
    end
  end
  local sent
  sent, err = socket:send(table.concat(lines, "\r\n") .. "\r\n\r\n" .. params.body)
  if not sent then
    return nil, err
  end
  local answer
  answer, err = receive_answer(socket)
  if not answer then
    socket:close()
    return nil, err
  end
  if answer.headers["connection"] == "close" then
    socket:close()
  else
    socket:setkeepalive(params.keepalive_timeout, 64)
  end
  return answer
end


return { new = function() return setmetatable({}, Client) end }
