-- Last check before a request leaves for an engine. A request that a router has answered carries a decision id in the
-- dynamic metadata, which no client can set, and passes. Any other request would go to the default pool unplaced: it
-- passes only when that pool may serve unplaced requests, the path is one of the OpenAI API, and its JSON body is for
-- one of the pool's own models and holds no reserved field. What cannot be read for certain is refused.
--
-- Settings come from the route's metadata under this filter's name:
--   open            serve unplaced requests at all
--   models          names that the pool's engines serve
--   paths           paths served unplaced
--   reserved        fields of the body that only a router may set
--   body_bytes_max  largest body read

local decision_namespace = "kvmesh"

local function refuse(handle, code, reason)
  local kind, retry = "service_unavailable_error", "1"
  if code == "400" then kind, retry = "invalid_request_error", nil end
  local headers = { [":status"] = code, ["content-type"] = "application/json", ["retry-after"] = retry }
  local name = code == "400" and "invalid_request" or "model_unavailable"
  handle:respond(headers,
    '{"error":{"message":"' .. reason .. '","type":"' .. kind .. '","param":null,"code":"' .. name .. '"}}')
end

local function contains(list, value)
  if list == nil then return false end
  for _, entry in ipairs(list) do
    if entry == value then return true end
  end
  return false
end

-- Position after the string that starts at `from` (its opening quote), and its raw text; nil when it does not end.
local function read_string(text, from)
  local at = from + 1
  while true do
    local stop = string.find(text, '["\\]', at)
    if stop == nil then return nil end
    if string.byte(text, stop) == 34 then return stop + 1, string.sub(text, from + 1, stop - 1) end
    at = stop + 2
  end
end

-- Position after the value that starts at `from`; nil when it does not end. Nested values are only counted through,
-- since what is inside them is not looked at. A loop and no recursion: depth costs nothing.
local function skip_value(text, from)
  local first = string.byte(text, from)
  if first == 34 then return (read_string(text, from)) end
  if first ~= 123 and first ~= 91 then return string.find(text, '[%s,}%]]', from) end
  local depth, at = 0, from
  repeat
    at = string.find(text, '["{}%[%]]', at)
    if at == nil then return nil end
    local byte = string.byte(text, at)
    if byte == 34 then
      at = read_string(text, at)
      if at == nil then return nil end
    else
      depth = depth + ((byte == 123 or byte == 91) and 1 or -1)
      at = at + 1
    end
  until depth == 0
  return at
end

-- The model that a JSON object names at its top level (nil when it names none), and why it cannot be told. Keys with
-- escapes, a model that is not a plain string and a second model are refused: engines differ in what they make of them.
local function read_model(text, reserved)
  local at = string.find(text, '%S')
  if at == nil or string.byte(text, at) ~= 123 then return nil, "it is not a JSON object" end
  at = string.find(text, '%S', at + 1)
  local model
  if at ~= nil and string.byte(text, at) == 125 then return nil, nil end
  while at ~= nil do
    if string.byte(text, at) ~= 34 then return nil, "it is not valid JSON" end
    local key
    at, key = read_string(text, at)
    if at == nil then return nil, "it is not valid JSON" end
    if string.find(key, '\\', 1, true) then return nil, "it has a field name with escapes" end
    if contains(reserved, key) then return nil, nil, key end
    at = string.find(text, '%S', at)
    if at == nil or string.byte(text, at) ~= 58 then return nil, "it is not valid JSON" end
    at = string.find(text, '%S', at + 1)
    if at == nil then return nil, "it is not valid JSON" end
    local after = skip_value(text, at)
    if after == nil then return nil, "it is not valid JSON" end
    if key == "model" then
      if model ~= nil then return nil, "it names a model twice" end
      if string.byte(text, at) ~= 34 then return nil, "its model is not a string" end
      model = string.gsub(string.sub(text, at + 1, after - 2), '\\/', '/')
      if string.find(model, '\\', 1, true) then return nil, "its model has escapes" end
    end
    at = string.find(text, '%S', after)
    local byte = at ~= nil and string.byte(text, at)
    if byte == 125 then
      if string.find(text, '%S', at + 1) then return nil, "it is not valid JSON" end
      return model, nil
    end
    if byte ~= 44 then return nil, "it is not valid JSON" end
    at = string.find(text, '%S', at + 1)
  end
  return nil, "it is not valid JSON"
end

-- Why this request may not go to the default pool: a status and a sentence; nothing when it may.
local function judge(handle)
  local settings = handle:metadata()
  if not settings:get("open") then return "503", "no router answered to place this request" end
  -- Read here: waiting for the body ends the life of what the handle gave out before.
  local models, paths, reserved = settings:get("models"), settings:get("paths"), settings:get("reserved")
  local body_bytes_max = settings:get("body_bytes_max")
  local headers = handle:headers()
  local path = string.match(headers:get(":path") or "", "^[^?#]*")
  local method, encoding = headers:get(":method"), headers:get("content-encoding")
  if not contains(paths, path) then
    return "503", "no router answered; this path is not served without one"
  end
  if method == "GET" then return end
  if encoding ~= nil and encoding ~= "identity" then
    return "503", "no router answered; an encoded body is not served without one"
  end
  local body = handle:body()
  if body == nil then
    return "503", "no router answered; a request without a body is not served without one"
  end
  local length = body:length()
  if length > body_bytes_max then
    return "503", "no router answered; a body this large is not served without one"
  end
  local model, problem, field = read_model(body:getBytes(0, length), reserved)
  if field ~= nil then return "400", "the field " .. field .. " is reserved" end
  if problem ~= nil then
    return "503", "no router answered, and the body cannot be served without one: " .. problem
  end
  if model ~= nil and not contains(models, model) then
    return "503", "no router answered, and the model is not served without one"
  end
end

function envoy_on_request(handle)
  local decided = handle:streamInfo():dynamicMetadata():get(decision_namespace)
  if decided ~= nil and decided["decision"] ~= nil then return end
  -- Envoy lets a request pass when a script fails, so nothing may fail outside of this call.
  local is_judged, code, reason = pcall(judge, handle)
  if not is_judged then
    handle:logErr("model guard: " .. tostring(code))
    code, reason = "503", "no router answered, and the request could not be checked"
  end
  if code ~= nil then refuse(handle, code, reason) end
end

-- Every 429 and 503 says when to try again, also those of an engine.
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if (status == "503" or status == "429") and headers:get("retry-after") == nil then
    headers:add("retry-after", "1")
  end
end
