# The values of a circuit's units for 16 rows, some of whose variables are known, and what the rest of the circuit says to each unit. All of a
# row's numbers in one scope have one scale, a power of two. The order of operations is that of the plan, whatever the machine.

# The exponent of what is 0 throughout: it never sets a scale, and thousands of them add up without overflow.
const DEAD = Int32(-2^20)

"""
    CodingTile(plan)

Of 16 rows: `value[:, u]` times 2^`value_exponent[:, s]` is the value of unit u, of scope s, given what is known below it, if something is;
`above[:, u]` times 2^`above_exponent[:, s]` is the derivative of the head, or of a mixture of heads, with respect to it, given what is known
elsewhere. Both are as old as the plan's steps say.
"""
struct CodingTile{T}
    value::Matrix{T}
    above::Matrix{T}
    value_exponent::Matrix{Int32}
    above_exponent::Matrix{Int32}
    factor::Matrix{T}                   # of the partitions above a scope, while it is gone through
    at::Vector{Int}                     # of each row, while a value becomes known: where its inputs begin, their scale, and 1 if it is not
    scale::Vector{T}
    unknown::Vector{T}
end

function CodingTile(p::CodingPlan{T}) where {T}
    units, scopes = num_units(p.circuit), length(p.layout.scopes)
    most = maximum(length(s.above) for s in p.layout.scopes)
    return CodingTile{T}(zeros(T, LANES, units), zeros(T, LANES, units), zeros(Int32, LANES, scopes), zeros(Int32, LANES, scopes),
                         zeros(T, LANES, most), zeros(Int, LANES), zeros(T, LANES), zeros(T, LANES))
end

"Bytes of a tile."
tile_bytes(p::CodingPlan{T}) where {T} = 2 * sizeof(T) * LANES * num_units(p.circuit) + 2 * 4 * LANES * length(p.layout.scopes)

@inline lanes_at(p::Ptr{T}, column) where {T} = p + (column - 1) * (LANES * sizeof(T))

"The exponent of what has `top` as its largest number, in units of 2^`e`."
@inline scale_exponent(e::IntLanes, top) = dead_where_zero(add(e, floor_exponents(top)), top)

for (vector, number) in ((Doubles, "double"), (Lanes, "float"))
    body = """%3 = fcmp oeq <16 x $number> %1, zeroinitializer
              %4 = select <16 x i1> %3, <16 x i32> $(every_lane(DEAD)), <16 x i32> %0
              ret <16 x i32> %4"""
    @eval @inline dead_where_zero(e::IntLanes, a::$vector) = Base.llvmcall($body, IntLanes, Tuple{IntLanes,$vector}, e, a)
end

"""
The weights of a tile's heads, `weight[row, head]` times 2^`exponent[row]`.
"""
struct HeadWeights{T}
    weight::Matrix{T}
    exponent::Vector{Int32}
end

HeadWeights{T}(heads::Integer) where {T} = HeadWeights{T}(zeros(T, LANES, heads), zeros(Int32, LANES))

"Goes through steps of the plan."
function follow!(t::CodingTile{T}, p::CodingPlan{T}, steps::Vector{Passage}, heads::HeadWeights{T}) where {T}
    for way in steps
        way.scope > 0 ? go_up!(t, p, Int(way.scope), way.known) : go_down!(t, p, Int(-way.scope), way.known, heads)
    end
end

"Works out bundles, `part` of `b`, from rows of 16 numbers at `from` into those at `to`, which may be the same."
function combine!(to::Ptr{T}, from::Ptr{T}, b::Bundles{T}, part::UnitRange{Int}) where {T}
    GC.@preserve b @inbounds for i in part
        bundle = b.list[i]
        weight, others = pointer(b.weight, bundle.weight), pointer(b.from, bundle.from)
        bundle.count == 1 ? combine_one!(to, from, b.units[bundle.unit], others, weight, bundle) :
                           combine_wide!(to, from, pointer(b.units, bundle.unit), others, weight, bundle)
    end
end

@inline function combine_one!(to::Ptr{T}, from::Ptr{T}, unit, others, weight, bundle::Bundle) where {T}
    own = bundle.fresh ? splat(zero(T)) : load_lanes(lanes_at(to, unit))
    for i in 1:bundle.terms
        own = add(own, mul(splat(unsafe_load(weight, i)), load_lanes(lanes_at(from, unsafe_load(others, i)))))
    end
    store_lanes(lanes_at(to, unit), without_tiny(own))
end

@inline function combine_wide!(to::Ptr{T}, from::Ptr{T}, units::Ptr{Int32}, others, weight, bundle::Bundle) where {T}
    zeros, n = splat(zero(T)), bundle.count
    start(k) = bundle.fresh || k > n ? zeros : load_lanes(lanes_at(to, unsafe_load(units, k)))
    a, b, c, d = start(1), start(2), start(3), start(4)
    for i in 1:bundle.terms
        other = load_lanes(lanes_at(from, unsafe_load(others, i)))
        at = ABREAST * (i - 1)
        a = add(a, mul(splat(unsafe_load(weight, at + 1)), other))
        b = add(b, mul(splat(unsafe_load(weight, at + 2)), other))
        c = add(c, mul(splat(unsafe_load(weight, at + 3)), other))
        d = add(d, mul(splat(unsafe_load(weight, at + 4)), other))
    end
    store_lanes(lanes_at(to, unsafe_load(units, 1)), without_tiny(a))
    store_lanes(lanes_at(to, unsafe_load(units, 2)), without_tiny(b))
    n > 2 && store_lanes(lanes_at(to, unsafe_load(units, 3)), without_tiny(c))
    n > 3 && store_lanes(lanes_at(to, unsafe_load(units, 4)), without_tiny(d))
end

"The values of scope `s`, from those of its partitions' children that have any, or of its inputs."
function go_up!(t::CodingTile{T}, p::CodingPlan{T}, s::Int, known) where {T}
    scope = p.layout.scopes[s]
    GC.@preserve t begin
        value, exponents = pointer(t.value), pointer(t.value_exponent)
        if !isempty(scope.partitions)
            top = splat(DEAD)
            for (part, from) in zip(scope.partitions, known)
                largest = splat(zero(T))
                @inbounds for (k, u) in enumerate(part.units)
                    own = multiplied(splat(one(T)), value, part.child, k, from)
                    store_lanes(lanes_at(value, u), own)
                    largest = max_lanes(largest, own)
                end
                top = max_lanes(top, scale_exponent(sum_exponents(exponents, part.scopes, from), largest))
            end
            for (part, from) in zip(scope.partitions, known)
                factor = powers(T, add(sum_exponents(exponents, part.scopes, from), negate(top)))
                @inbounds for u in part.units
                    store_lanes(lanes_at(value, u), without_tiny(mul(load_lanes(lanes_at(value, u)), factor)))
                end
            end
            store_lanes(lanes_at(exponents, s), top)
        end
        combine!(value, value, p.up, p.up.part[s])
    end
end

"`own` times the values of those children of the k-th product that are known."
@inline function multiplied(own, value::Ptr, child::Matrix{Int32}, k, known)
    @inbounds for i in known
        own = without_tiny(mul(own, load_lanes(lanes_at(value, child[i, k]))))
    end
    return own
end

@inline function sum_exponents(exponents::Ptr{Int32}, scopes, known)
    e = splat(Int32(0))
    @inbounds for i in known
        e = add(e, load_lanes(lanes_at(exponents, scopes[i])))
    end
    return e
end

"""
What the rest of the circuit says to the units of scope `s`, from the partitions above it; `heads` to those of the root's scope.
"""
function go_down!(t::CodingTile{T}, p::CodingPlan{T}, s::Int, known, heads::HeadWeights{T}) where {T}
    c, scope = p.circuit, p.layout.scopes[s]
    GC.@preserve t heads begin
        above, exponents = pointer(t.above), pointer(t.above_exponent)
        if s == p.layout.root
            zeros = splat(zero(T))
            foreach(u -> store_lanes(lanes_at(above, u), zeros), c.heads)
            @inbounds for (h, u) in enumerate(c.heads)
                store_lanes(lanes_at(above, u), add(load_lanes(lanes_at(above, u)), load_lanes(lanes_at(pointer(heads.weight), h))))
            end
            rescale!(above, exponents, s, c.heads, load_lanes(pointer(heads.exponent)))
        else
            top = gather_outer!(t, p, scope, known)
            rescale!(above, exponents, s, scope.boundary, top)
        end
        combine!(above, above, p.down, p.down.part[s])
    end
end

"""
Of each unit on a scope's boundary, the sum over its products in larger scopes of what these are told, times their other children that are known.
Returns the exponent of their scale.
"""
function gather_outer!(t::CodingTile{T}, p::CodingPlan{T}, scope::Scope, known) where {T}
    scopes, above, value, factor = p.layout.scopes, pointer(t.above), pointer(t.value), pointer(t.factor)
    parts = Partition[scopes[parent].partitions[i] for (parent, i) in scope.above]
    exponent(g) = add(load_lanes(lanes_at(pointer(t.above_exponent), scope.above[g][1])),
                      sum_exponents(pointer(t.value_exponent), parts[g].scopes, known[g]))
    top = exponent(1)
    if length(scope.above) == 1 && length(scope.outer) == length(scope.boundary)  # as in a tree
        part, from = parts[1], known[1]
        @inbounds for (b, u) in enumerate(scope.boundary)
            k = scope.outer[b][1]
            store_lanes(lanes_at(above, u), multiplied(load_lanes(lanes_at(above, part.units[k])), value, part.child, k, from))
        end
        return top
    end
    for g in 2:length(scope.above)
        top = max_lanes(top, exponent(g))
    end
    for g in eachindex(scope.above)
        store_lanes(lanes_at(factor, g), powers(T, add(exponent(g), negate(top))))
    end
    @inbounds for (b, u) in enumerate(scope.boundary)
        own = splat(zero(T))
        for j in scope.outer_start[b]:scope.outer_start[b + 1] - 1
            k, g = scope.outer[j]
            part = parts[g]
            said = without_tiny(mul(load_lanes(lanes_at(above, part.units[k])), load_lanes(lanes_at(factor, g))))
            own = add(own, multiplied(said, value, part.child, k, known[g]))
        end
        store_lanes(lanes_at(above, u), own)
    end
    return top
end

"Scales what `units` are told so that the largest is in [1, 2)."
function rescale!(above::Ptr{T}, exponents, s, units, e::IntLanes) where {T}
    largest = splat(zero(T))
    @inbounds for u in units
        largest = max_lanes(largest, load_lanes(lanes_at(above, u)))
    end
    factor = powers(T, negate(floor_exponents(largest)))
    @inbounds for u in units
        store_lanes(lanes_at(above, u), without_tiny(mul(load_lanes(lanes_at(above, u)), factor)))
    end
    store_lanes(lanes_at(exponents, s), scale_exponent(e, largest))
end

"Of each group of the values of variable `v` its weight in each row, times 2^`above_exponent`: into `out`, (rows, groups)."
function group_weights!(out::Matrix{T}, t::CodingTile{T}, p::CodingPlan{T}, v::Int) where {T}
    GC.@preserve out t combine!(pointer(out), pointer(t.above), p.mass, p.mass.part[v])
end

"The weights of the values of one group, `groups[row]`, from 1, of variable `v` in each row: into `out`, (values of a group, rows)."
function value_weights!(out::Matrix{T}, t::CodingTile{T}, p::CodingPlan{T}, v::Int, groups::Vector{Int}) where {T}
    inputs, value = p.layout.scopes[p.layout.single[v]].inputs, p.tables[v].value
    m, K = size(value, 1), length(inputs)
    GC.@preserve out t value for row in 1:4:LANES, at in 0:8:m - 1
        from(r) = pointer(value, 1 + at + m * K * (groups[r] - 1))
        if at + 8 <= m
            add_values!(pointer(out, 1 + at + m * (row - 1)), t, inputs, map(from, (row, row + 1, row + 2, row + 3)), m, row)
        else
            for r in row:row + 3, i in 1:m - at
                own = zero(T)
                for (k, u) in enumerate(inputs)
                    @inbounds own += t.above[r, u] * T(unsafe_load(from(r), i + m * (k - 1)))
                end
                out[at + i, r] = own
            end
        end
    end
end

"""
Of four rows from `row` on the sums over `inputs` of what they are told, times 8 of their values: `stride` numbers lie from one's to the next's, and
from one row's sums to the next's.
"""
@inline function add_values!(out::Ptr{T}, t::CodingTile{T}, inputs, from, stride, row) where {T}
    zeros = eight(zero(T))
    a, b, c, d = zeros, zeros, zeros, zeros
    @inbounds for k in eachindex(inputs)
        u, next = inputs[k], 4stride * (k - 1)
        a = add(a, mul(eight(t.above[row, u]), eight(T, from[1] + next)))
        b = add(b, mul(eight(t.above[row + 1, u]), eight(T, from[2] + next)))
        c = add(c, mul(eight(t.above[row + 2, u]), eight(T, from[3] + next)))
        d = add(d, mul(eight(t.above[row + 3, u]), eight(T, from[4] + next)))
    end
    for (i, sums) in enumerate((a, b, c, d))
        unsafe_store!(Ptr{NTuple{8,VecElement{T}}}(out + (i - 1) * stride * sizeof(T)), sums)
    end
end

"Makes variable `v` known: of each row its value, from 0, or `UNKNOWN`, which says 1."
function know!(t::CodingTile{T}, p::CodingPlan{T}, v::Int, values::AbstractVector{Int32}) where {T}
    s = p.layout.single[v]
    inputs, table, exponent, at, factor, unknown = p.layout.scopes[s].inputs, p.tables[v].by_value, p.tables[v].exponent, t.at, t.scale, t.unknown
    @inbounds for row in 1:LANES
        known, x = values[row] != UNKNOWN, max(Int(values[row]), 0)
        e = known ? exponent[x + 1] : Int32(0)
        at[row] = size(table, 1) * x
        factor[row] = known ? T(double_power(e == DEAD ? 0 : -e)) : zero(T)
        unknown[row] = known ? zero(T) : one(T)
        t.value_exponent[row, s] = e
    end
    GC.@preserve t table begin
        to, scale, rest = pointer(t.value), load_lanes(pointer(factor)), load_lanes(pointer(unknown))
        for first in 0:LANES:length(inputs) - 1
            columns = transpose16(ntuple(row -> load_lanes(pointer(table, first + 1 + @inbounds at[row])), Val(LANES)))
            for l in 1:min(LANES, length(inputs) - first)
                store_lanes(lanes_at(to, @inbounds inputs[first + l]), add(without_tiny(mul(lanes(T, columns[l]), scale)), rest))
            end
        end
    end
end

function know_nothing!(t::CodingTile, s, inputs, row)
    for u in inputs
        t.value[row, u] = 1
    end
    t.value_exponent[row, s] = 0
end

"What is known of variable `v`, whose values are one group, softly: the likelihood of each, to scale; nothing where all of them are 0."
function know_softly!(t::CodingTile{T}, p::CodingPlan{T}, v::Int, row::Int, weight) where {T}
    s = p.layout.single[v]
    inputs, table = p.layout.scopes[s].inputs, p.tables[v].value
    largest = zero(T)
    @inbounds for (k, u) in enumerate(inputs)
        own = zero(T)
        for x in eachindex(weight)
            own += T(table[x, k, 1]) * weight[x]
        end
        t.value[row, u] = own
        largest = max(largest, own)
    end
    largest < tiny(T) && return know_nothing!(t, s, inputs, row)
    factor = double_power(-double_exponent(largest))
    @inbounds for u in inputs
        t.value[row, u] = without_tiny(t.value[row, u] * factor)
    end
    t.value_exponent[row, s] = double_exponent(largest)
    return
end

"The weights of the values of variable `v`, which are one group, in one row, to scale: into `out`."
function all_weights!(out, t::CodingTile, p::CodingPlan, v::Int, row::Int)
    inputs, table = p.layout.scopes[p.layout.single[v]].inputs, p.tables[v].value
    fill!(out, 0.0)
    @inbounds for (k, u) in enumerate(inputs)
        told = t.above[row, u]
        told == 0 && continue
        for x in eachindex(out)
            out[x] += told * Float64(table[x, k, 1])
        end
    end
end

"The scopes that hold more than nothing after `know!` of the `i`-th variable, as (on the way up, on the way down)."
function touched(p::CodingPlan, i::Int)
    up, down = Set{Int}(p.layout.single[v] for v in p.order[1:i]), Set{Int}()
    for steps in p.steps[1:i], way in steps
        push!(way.scope > 0 ? up : down, abs(way.scope))
    end
    return sort(collect(up)), sort(collect(down))
end

"All units of a scope."
units_of(s::Scope) = reduce(vcat, [part.units for part in s.partitions]; init=[s.inputs; s.sums])

"Copies what row `from` of tile `a` has in these units and scopes to row `to` of tile `b`."
function copy_row!(b::CodingTile, to::Int, a::CodingTile, from::Int, (up, down), (units_up, units_down))
    copy_row!(b.value, to, a.value, from, units_up)
    copy_row!(b.above, to, a.above, from, units_down)
    copy_row!(b.value_exponent, to, a.value_exponent, from, up)
    copy_row!(b.above_exponent, to, a.above_exponent, from, down)
end

function copy_row!(b::Matrix, to::Int, a::Matrix, from::Int, columns)
    @inbounds for i in columns
        b[to, i] = a[from, i]
    end
end
