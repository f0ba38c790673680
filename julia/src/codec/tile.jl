# The values of a circuit's units for 16 rows, some of whose variables are known, and what the rest of the circuit says to each unit. All of a
# row's numbers in one scope have one scale, a power of two. The order of operations is that of the plan, whatever the machine.

# The exponent of what is 0 throughout: it never sets a scale, and thousands of them add up without overflow.
const DEAD = Int32(-2^20)

# What rows of which a variable is not known, or cannot be, have for its value.
const UNKNOWN = Int32(-1)

"""
    CodingTile(plan)

Of 16 rows: `value[:, u]` times 2^`value_exponent[:, s]` is the value of unit u, of scope s, given what is known below it (1 where nothing is);
`above[:, u]` times 2^`above_exponent[:, s]` is the derivative of the head, or of a mixture of heads, with respect to it, given what is known
elsewhere. Both are as old as the plan's steps say.
"""
struct CodingTile
    value::Matrix{Float64}
    above::Matrix{Float64}
    value_exponent::Matrix{Int32}
    above_exponent::Matrix{Int32}
    factor::Matrix{Float64}             # of the partitions above a scope, while it is gone through
end

function CodingTile(p::CodingPlan)
    units, scopes = num_units(p.circuit), length(p.layout.scopes)
    most = maximum(length(s.above) for s in p.layout.scopes)
    return reset!(CodingTile(zeros(LANES, units), zeros(LANES, units), zeros(Int32, LANES, scopes), zeros(Int32, LANES, scopes), zeros(LANES, most)))
end

"Bytes of a tile."
tile_bytes(p::CodingPlan) = 2 * 8 * LANES * num_units(p.circuit) + 2 * 4 * LANES * length(p.layout.scopes)

"Nothing is known."
function reset!(t::CodingTile)
    fill!(t.value, 1.0)
    fill!(t.value_exponent, 0)
    return t
end

@inline lanes_at(p::Ptr{T}, column) where {T} = p + (column - 1) * (LANES * sizeof(T))

"The exponent of what has `top` as its largest number, in units of 2^`e`."
@inline scale_exponent(e::IntLanes, top::Doubles) = dead_where_zero(add(e, exponent_lanes(top)), top)

const DEAD_WHERE_ZERO = """%3 = fcmp oeq <16 x double> %1, zeroinitializer
                           %4 = select <16 x i1> %3, <16 x i32> $(every_lane(DEAD)), <16 x i32> %0
                           ret <16 x i32> %4"""
@eval @inline dead_where_zero(e::IntLanes, a::Doubles) = Base.llvmcall($DEAD_WHERE_ZERO, IntLanes, Tuple{IntLanes,Doubles}, e, a)

"Goes through steps of the plan. `heads`: as for [`go_down!`](@ref)."
function follow!(t::CodingTile, p::CodingPlan, steps::Vector{Int32}, heads::Matrix{Float64})
    for s in steps
        s > 0 ? go_up!(t, p, Int(s)) : go_down!(t, p, Int(-s), heads)
    end
end

"The values of scope `s`, from those of its partitions' children, or of its inputs."
function go_up!(t::CodingTile, p::CodingPlan, s::Int)
    c, scope = p.circuit, p.layout.scopes[s]
    GC.@preserve t begin
        value, exponents = pointer(t.value), pointer(t.value_exponent)
        if !isempty(scope.partitions)
            top = splat(DEAD)
            for part in scope.partitions
                largest = splat(0.0)
                @inbounds for u in part.units
                    own = multiplied(c, value, u)
                    store_doubles(lanes_at(value, u), own)
                    largest = max_lanes(largest, own)
                end
                top = max_lanes(top, scale_exponent(sum_exponents(exponents, part.scopes), largest))
            end
            for part in scope.partitions
                factor = double_power(add(sum_exponents(exponents, part.scopes), negate(top)))
                @inbounds for u in part.units
                    store_doubles(lanes_at(value, u), without_tiny(mul(load_doubles(lanes_at(value, u)), factor)))
                end
            end
            store_lanes(lanes_at(exponents, s), top)
        end
        @inbounds for u in scope.sums
            store_doubles(lanes_at(value, u), c.kind[u] == SUM ? summed(c, value, u) : load_doubles(lanes_at(value, c.child[c.list[u]])))
        end
    end
end

@inline function multiplied(c::Circuit, value::Ptr{Float64}, u)
    first, n = c.list[u], c.child_start[u + 1] - c.child_start[u]
    own = load_doubles(lanes_at(value, @inbounds c.child[first]))
    for i in first + 1:first + n - 1
        own = without_tiny(mul(own, load_doubles(lanes_at(value, @inbounds c.child[i]))))
    end
    return own
end

@inline function summed(c::Circuit, value::Ptr{Float64}, u)
    first, start, n = c.list[u], c.child_start[u], c.child_start[u + 1] - c.child_start[u]
    own = splat(0.0)
    for i in 0:n - 1
        @inbounds own = add(own, mul(splat(plain(c.weight[start + i])), load_doubles(lanes_at(value, c.child[first + i]))))
    end
    return without_tiny(own)
end

@inline function sum_exponents(exponents::Ptr{Int32}, scopes)
    e = splat(Int32(0))
    for s in scopes
        e = add(e, load_lanes(lanes_at(exponents, s)))
    end
    return e
end

"""
What the rest of the circuit says to the units of scope `s`, from the partitions above it. `heads`, (rows, heads): of the root's scope, the
weights of the heads, which all have one scale.
"""
function go_down!(t::CodingTile, p::CodingPlan, s::Int, heads::Matrix{Float64})
    c, scope = p.circuit, p.layout.scopes[s]
    GC.@preserve t heads begin
        above, exponents = pointer(t.above), pointer(t.above_exponent)
        clear!(above, scope)
        if s == p.layout.root
            top = splat(Int32(0))
            @inbounds for (h, u) in enumerate(c.heads)
                store_doubles(lanes_at(above, u), add(load_doubles(lanes_at(above, u)), load_doubles(lanes_at(pointer(heads), h))))
            end
            rescale!(above, exponents, s, c.heads, top)
        else
            top = outer_exponents!(t, p, s)
            gather_outer!(t, p, scope)
            rescale!(above, exponents, s, scope.boundary, top)
        end
        @inbounds for i in length(scope.sums):-1:1
            gather!(above, p, scope.sums[i])
        end
        for part in scope.partitions, u in part.units
            gather!(above, p, u)
        end
        foreach(u -> gather!(above, p, u), scope.inputs)
    end
end

function clear!(above, scope)
    zero = splat(0.0)
    foreach(u -> store_doubles(lanes_at(above, u), zero), scope.sums)
    foreach(u -> store_doubles(lanes_at(above, u), zero), scope.inputs)
    for part in scope.partitions, u in part.units
        store_doubles(lanes_at(above, u), zero)
    end
end

"The largest exponent of what the partitions above a scope say, and, in `t.factor`, the powers of two that bring all to it."
function outer_exponents!(t::CodingTile, p::CodingPlan, s::Int)
    scopes = p.layout.scopes
    value_exponent, above_exponent = pointer(t.value_exponent), pointer(t.above_exponent)
    exponent((parent, i)) = begin
        e = load_lanes(lanes_at(above_exponent, parent))
        for other in scopes[parent].partitions[i].scopes
            other == s || (e = add(e, load_lanes(lanes_at(value_exponent, other))))
        end
        e
    end
    top = splat(typemin(Int32) ÷ Int32(2))
    for pair in scopes[s].above
        top = max_lanes(top, exponent(pair))
    end
    for (g, pair) in enumerate(scopes[s].above)
        store_doubles(lanes_at(pointer(t.factor), g), double_power(add(exponent(pair), negate(top))))
    end
    return top
end

"Of each unit on a scope's boundary, the sum over its products in larger scopes of what these are told, times their other children."
function gather_outer!(t::CodingTile, p::CodingPlan, scope::Scope)
    c, above, value, factor = p.circuit, pointer(t.above), pointer(t.value), pointer(t.factor)
    @inbounds for (b, u) in enumerate(scope.boundary)
        own = splat(0.0)
        for i in scope.outer_start[b]:scope.outer_start[b + 1] - 1
            product, g = scope.outer[i]
            said = without_tiny(mul(load_doubles(lanes_at(above, product)), load_doubles(lanes_at(factor, g))))
            first = c.list[product]
            for j in first:first + c.child_start[product + 1] - c.child_start[product] - 1
                v = c.child[j]
                v == u || (said = without_tiny(mul(said, load_doubles(lanes_at(value, v)))))
            end
            own = add(own, said)
        end
        store_doubles(lanes_at(above, u), own)
    end
end

"Scales what `units` are told so that the largest is in [1, 2)."
function rescale!(above, exponents, s, units, e::IntLanes)
    largest = splat(0.0)
    @inbounds for u in units
        largest = max_lanes(largest, load_doubles(lanes_at(above, u)))
    end
    factor = double_power(negate(exponent_lanes(largest)))
    @inbounds for u in units
        store_doubles(lanes_at(above, u), without_tiny(mul(load_doubles(lanes_at(above, u)), factor)))
    end
    store_lanes(lanes_at(exponents, s), scale_exponent(e, largest))
end

"Adds what a unit is told by its parents of the same scope."
@inline function gather!(above, p::CodingPlan, u)
    own = load_doubles(lanes_at(above, u))
    for i in p.parent_start[u]:p.parent_start[u + 1] - 1
        @inbounds own = add(own, mul(splat(p.parent_weight[i]), load_doubles(lanes_at(above, p.parent[i]))))
    end
    store_doubles(lanes_at(above, u), without_tiny(own))
end

"Of each group of the values of variable `v` its weight in each row, times 2^`above_exponent`: into `out`, (rows, groups)."
function group_weights!(out::Matrix{Float64}, t::CodingTile, p::CodingPlan, v::Int)
    inputs, mass = p.layout.scopes[p.layout.single[v]].inputs, p.tables[v].mass
    GC.@preserve t out begin
        above = pointer(t.above)
        @inbounds for g in axes(mass, 2)
            own = splat(0.0)
            for (k, u) in enumerate(inputs)
                own = add(own, mul(splat(mass[k, g]), load_doubles(lanes_at(above, u))))
            end
            store_doubles(lanes_at(pointer(out), g), own)
        end
    end
end

"The weights of the values of group `g` in one row: into `out`, of a group's size."
function value_weights!(out::Vector{Float64}, t::CodingTile, p::CodingPlan, v::Int, row::Int, g::Int)
    inputs, value = p.layout.scopes[p.layout.single[v]].inputs, p.tables[v].value
    fill!(out, 0.0)
    @inbounds for (k, u) in enumerate(inputs)
        told = t.above[row, u]
        for i in axes(value, 1)
            out[i] += told * Float64(value[i, k, g])
        end
    end
end

"Makes variable `v` known: of each row its value, from 0, or `UNKNOWN`."
function know!(t::CodingTile, p::CodingPlan, v::Int, values)
    s = p.layout.single[v]
    inputs, table = p.layout.scopes[s].inputs, p.tables[v].value
    @inbounds for row in 1:LANES
        x = Int(values[row])
        if x == UNKNOWN
            know_nothing!(t, s, inputs, row)
        else
            g, i = divrem(x, size(table, 1))
            largest = 0f0
            for k in eachindex(inputs)
                largest = max(largest, table[i + 1, k, g + 1])
            end
            e = double_exponent(Float64(largest))
            factor = double_power(-e)
            for (k, u) in enumerate(inputs)
                t.value[row, u] = without_tiny(Float64(table[i + 1, k, g + 1]) * factor)
            end
            t.value_exponent[row, s] = largest == 0 ? DEAD : e
        end
    end
end

function know_nothing!(t::CodingTile, s, inputs, row)
    for u in inputs
        t.value[row, u] = 1.0
    end
    t.value_exponent[row, s] = 0
end

"What is known of variable `v`, whose values are one group, softly: the likelihood of each, to scale; nothing where all of them are 0."
function know_softly!(t::CodingTile, p::CodingPlan, v::Int, row::Int, weight)
    s = p.layout.single[v]
    inputs, table = p.layout.scopes[s].inputs, p.tables[v].value
    largest = 0.0
    @inbounds for (k, u) in enumerate(inputs)
        own = 0.0
        for x in eachindex(weight)
            own += Float64(table[x, k, 1]) * weight[x]
        end
        t.value[row, u] = own
        largest = max(largest, own)
    end
    largest < TINY && return know_nothing!(t, s, inputs, row)
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
