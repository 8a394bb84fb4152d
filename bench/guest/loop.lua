-- Traces over integers, floats, tables, strings and 64-bit integers of the FFI.
local function sieve(n)
  local composite, found = {}, 0
  for i = 2, n do
    if not composite[i] then
      found = found + 1
      for k = i * 2, n, i do composite[k] = true end
    end
  end
  return found
end
local function series(n)
  local sum = 0
  for i = 1, n do sum = sum + math.sin(i) / i end
  return sum
end
local bit = require("bit")
local function hash(n)
  local h = 5381
  for i = 1, n do h = bit.bxor(bit.tobit(h * 33), i) end
  return h
end
local ffi = require("ffi")
local function sum64(n)
  local a, sum = ffi.new("uint64_t[256]"), 0ULL
  for i = 0, 255 do a[i] = i * 0x123456789ULL end
  for i = 1, n do sum = sum * 31 + a[i % 256] end
  return sum
end
local function words(n)
  local parts = {}
  for i = 1, n do parts[#parts + 1] = string.format("%x", i * 7919 % 65521) end
  return #table.concat(parts, ",")
end
print(sieve(1000000), string.format("%.9f", series(3000000)), hash(20000000), tostring(sum64(20000000)), words(100000))
