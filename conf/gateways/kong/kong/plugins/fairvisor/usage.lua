-- Finds the usage in the text of an LLM response: JSON, or a stream of server-sent events.
--
-- OpenAI, Anthropic, Gemini and those who speak like them: the member is called `usage` or `usageMetadata`, in the
-- document or in its `response` or `message`. Of a stream the last value of every member counts: Anthropic tells the
-- input at the start and the output at the end, and its numbers are totals so far.

local cjson = require "cjson.safe"

local Usage = {}


local function member(holder)
  if type(holder) ~= "table" then
    return nil
  end
  for _, name in ipairs({ "usage", "usageMetadata" }) do
    if type(holder[name]) == "table" then
      return holder[name]
    end
  end
end


local function inside(document)
  if type(document) == "table" then
    return member(document) or member(document.response) or member(document.message)
  end
end


local function from_events(text)
  local merged
  for data in text:gmatch("data:%s*([^\r\n]+)") do
    for name, value in pairs(inside(cjson.decode(data)) or {}) do
      if value ~= cjson.null then
        merged = merged or {}
        merged[name] = value
      end
    end
  end
  return merged
end


-- The usage as the provider worded it, nil when there is none. A text whose beginning is cut off has none in JSON.
function Usage.read(text)
  return inside(cjson.decode(text)) or from_events(text)
end


return Usage
