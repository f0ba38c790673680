# Dense blocks: three matrix products over a tile of samples, each a loop around one kernel that keeps a block of sums in registers.

# A block has BLOCK columns of so many vectors of 16 numbers: one where a CPU has 16 registers and needs two of them for 16 numbers,
# several where it has 32 of them. Both hide the latency of a multiply-add, and load less than they compute.
const BLOCK = 6

"Whether this CPU has 32 registers of 16 numbers (AVX-512), and the code is made for it. Set as the package is loaded."
const WIDE = Ref(false)

function has_wide_registers()
    Sys.ARCH === :x86_64 || return false
    target = Base.JLOptions().cpu_target
    target == C_NULL || unsafe_string(target) == "native" || return false
    return leaf_7() & (UInt32(1) << 16) != 0
end

# What CPUID says in EBX of its leaf 7: bit 16 is AVX-512F.
@static if Sys.ARCH === :x86_64
    leaf_7() = Base.llvmcall(
        """%1 = call { i32, i32, i32, i32 } asm "cpuid", "={ax},={bx},={cx},={dx},{ax},{cx}"(i32 7, i32 0)
           %2 = extractvalue { i32, i32, i32, i32 } %1, 1
           ret i32 %2""", UInt32, Tuple{})
else
    leaf_7() = UInt32(0)
end

# The unrolled kernels, `*_code`, are written out when the package is compiled (see simd.jl).
accumulator(v, k) = Symbol(:acc, v, :_, k)
vector(name, v) = Symbol(name, v)

"""
Sums in registers: `acc[v, k] += a[v, i] b(i, k)` for i = 0:count-1, of `vectors` x `columns` of them. Vector v of row i lies at
`a + i * a_step + 64 v`, b(i, k) is number `1 + i * row + k * column` of `b`; then `finish(v, k)` is code that uses them.
"""
function block_code(finish, vectors, columns, row, column)
    every = [(v, k) for k in 1:columns for v in 1:vectors]
    return quote
        $([:($(accumulator(v, k)) = splat(0f0)) for (v, k) in every]...)
        for i in 0:count - 1
            $([:($(vector(:x, v)) = load_lanes(a + i * a_step + $(64 * (v - 1)))) for v in 1:vectors]...)
            $([quote
                   y = splat(unsafe_load(b, 1 + i * $row + $(k - 1) * $column))
                   $([:($(accumulator(v, k)) = muladd_lanes($(vector(:x, v)), y, $(accumulator(v, k)))) for v in 1:vectors]...)
               end for k in 1:columns]...)
        end
        $([finish(v, k) for (v, k) in every]...)
        return
    end
end

place(base, step, v, k) = :($base + $(k - 1) * $step + $(64 * (v - 1)))

multiply_code(vectors, columns) = block_code(vectors, columns, 1, :stride) do v, k
    :(store_lanes($(place(:out, 4 * TILE, v, k)), $(accumulator(v, k))))
end

flow_down_code(vectors, columns) = block_code(vectors, columns, :stride, 1) do v, k
    at, result = place(:out, 4 * TILE, v, k), :(mul(load_lanes($(place(:value, 4 * TILE, v, k))), $(accumulator(v, k))))
    :(store_lanes($at, accumulate ? add(load_lanes($at), $result) : $result))
end

edge_flows_code(vectors, columns) = block_code(vectors, columns, 1, TILE) do v, k
    at = place(:out, :(4 * stride), v, k)
    :(store_lanes($at, add(load_lanes($at), $(accumulator(v, k)))))
end

for vectors in (1, 2, VECTORS), columns in 1:BLOCK
    @eval function edge_flows_block!(::Val{$vectors}, ::Val{$columns}, out::Ptr{Float32}, a::Ptr{Float32}, b::Ptr{Float32}, a_step::Int,
                                     stride::Int)
        count = TILE
        $(edge_flows_code(vectors, columns))
    end
    vectors == 2 && continue
    @eval function multiply_block!(::Val{$vectors}, ::Val{$columns}, out::Ptr{Float32}, a::Ptr{Float32}, b::Ptr{Float32}, stride::Int,
                                   count::Int)
        a_step = 4 * TILE
        $(multiply_code(vectors, columns))
    end
    @eval function flow_down_block!(::Val{$vectors}, ::Val{$columns}, out::Ptr{Float32}, value::Ptr{Float32}, a::Ptr{Float32},
                                    b::Ptr{Float32}, stride::Int, count::Int, accumulate::Bool)
        a_step = 4 * TILE
        $(flow_down_code(vectors, columns))
    end
end

"Calls `kernel!(vectors, Val(n), arguments...)`, n = 1:BLOCK: code for each, without looking for it in a table of methods."
macro unrolled(n, kernel!, vectors, arguments...)
    calls = [:($n == $m && $kernel!($vectors, Val($m), $(arguments...))) for m in BLOCK:-1:1]
    return esc(Expr(:block, calls..., nothing))
end

"out[:, k] = sum over j of in[:, j] w[j, k], for an (inputs, outputs) matrix of weights with the given stride."
multiply!(out::Ptr{Float32}, in::Ptr{Float32}, w::Ptr{Float32}, stride::Int, inputs::Int, outputs::Int) =
    WIDE[] ? multiply!(Val(VECTORS), out, in, w, stride, inputs, outputs) : multiply!(Val(1), out, in, w, stride, inputs, outputs)

function multiply!(vectors::Val{V}, out, in, w, stride, inputs, outputs) where {V}
    for k in 0:BLOCK:outputs - 1, v in 0:V:VECTORS - 1
        n = min(BLOCK, outputs - k)
        @unrolled(n, multiply_block!, vectors, column(out, k) + 64 * v, in + 64 * v, w + 4 * k * stride, stride, inputs)
    end
end

"flow[:, j] (+)= value[:, j] * sum over k of w[j, k] r[:, k]: the flow that a dense block sends to its children."
flow_down!(flow::Ptr{Float32}, value::Ptr{Float32}, r::Ptr{Float32}, w::Ptr{Float32}, stride::Int, inputs::Int, outputs::Int, adds::Bool) =
    WIDE[] ? flow_down!(Val(VECTORS), flow, value, r, w, stride, inputs, outputs, adds) :
             flow_down!(Val(1), flow, value, r, w, stride, inputs, outputs, adds)

function flow_down!(vectors::Val{V}, flow, value, r, w, stride, inputs, outputs, adds) where {V}
    for j in 0:BLOCK:inputs - 1, v in 0:V:VECTORS - 1
        n = min(BLOCK, inputs - j)
        @unrolled(n, flow_down_block!, vectors, column(flow, j) + 64 * v, column(value, j) + 64 * v, r + 64 * v, w + 4 * j, stride,
                  outputs, adds)
    end
end

"Room for the values of so many units, turned: those of one sample side by side, in whole vectors."
turned_length(units) = TILE * LANES * cld(units, LANES)

"""
stat[j, k] += sum over the tile of value[:, j] r[:, k]: a dense block's edge flows, divided by its weights. `turned` is room for the
values (`turned_length`), so that a vector is 16 edges and nothing is added up across lanes. `room`: how many numbers there are from
`stat` on; to those that are not the block's, 0 is added.
"""
function edge_flows!(stat::Ptr{Float32}, value::Ptr{Float32}, r::Ptr{Float32}, stride::Int, inputs::Int, outputs::Int,
                     turned::Ptr{Float32}, room::Int)
    turn_tile!(turned, value, inputs)
    turned_edge_flows!(stat, turned, r, stride, inputs, outputs, room)
end

"The same from `turned` values."
function turned_edge_flows!(stat::Ptr{Float32}, turned::Ptr{Float32}, r::Ptr{Float32}, stride::Int, inputs::Int, outputs::Int, room::Int)
    rows = LANES * cld(inputs, LANES)
    whole = clamp(fld(room - rows, stride) + 1, 0, outputs)  # columns of which whole vectors fit in
    for k in 0:BLOCK:whole - 1
        n, j = min(BLOCK, whole - k), 0
        while j < rows
            out, a, b = stat + 4 * (j + k * stride), turned + 4j, column(r, k)
            if WIDE[] && rows - j >= VECTORS * LANES
                @unrolled(n, edge_flows_block!, Val(VECTORS), out, a, b, 4 * rows, stride)
                j += VECTORS * LANES
            elseif WIDE[] && rows - j >= 2 * LANES
                @unrolled(n, edge_flows_block!, Val(2), out, a, b, 4 * rows, stride)
                j += 2 * LANES
            else
                @unrolled(n, edge_flows_block!, Val(1), out, a, b, 4 * rows, stride)
                j += LANES
            end
        end
    end
    for k in whole:outputs - 1, j in 0:inputs - 1
        e = 1 + j + k * stride
        unsafe_store!(stat, unsafe_load(stat, e) + dot_turned(turned, rows, j, column(r, k)), e)
    end
end

"turned[j, :] = value[:, j], with 0 beyond the last unit."
function turn_tile!(turned::Ptr{Float32}, value::Ptr{Float32}, units::Int)
    rows = LANES * cld(units, LANES)
    for v in 0:VECTORS - 1, j in 0:LANES:rows - 1
        own = transpose16(ntuple(l -> j + l <= units ? load_lanes(column(value, j + l - 1) + 64 * v) : splat(0f0), Val(LANES)))
        store_rows!(turned + 4 * (LANES * v * rows + j), 4 * rows, own)
    end
end

"Stores 16 vectors, a step of so many bytes apart."
@inline function store_rows!(p::Ptr{Float32}, step::Int, rows::NTuple{LANES,Lanes})
    for s in 1:LANES
        store_lanes(p + (s - 1) * step, rows[s])
    end
end

"The sum over the tile of turned[j, :] b[:]."
function dot_turned(turned::Ptr{Float32}, rows::Int, j::Int, b::Ptr{Float32})
    total = 0f0
    for s in 0:TILE - 1
        total = muladd(unsafe_load(turned, 1 + j + s * rows), unsafe_load(b, 1 + s), total)
    end
    return total
end
